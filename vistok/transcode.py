"""Folders of pictures to token files and back, a batch at a time: neither pictures nor tokens are held in memory."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vistok.data.images import image_files, load_images
from vistok.entropy import EntropyCoder, FrequencyTable
from vistok.errors import DataError, TokenFileError, VistokError, require
from vistok.generate.prior import LearnedPrior
from vistok.hub import CHECKPOINT_SUFFIXES, from_pretrained
from vistok.models.target import Target, find_lengths
from vistok.report.grid import save_image
from vistok.token_file import TokenFile, TokenWriter, recode
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

logger = logging.getLogger(__name__)

Conditions = Callable[[int], Any]  # the condition of so many images


def encode_files(
    tokenizer: Tokenizer,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    length: int | None = None,
    target: Target | tuple[str, float] | str | None = None,
    entropy: str | Path | EntropyCoder | None = None,
    crop: str | None = None,
    batch_size: int = 16,
    decode_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Encode pictures into one ``.vtk`` file.

    Args:
        tokenizer: what encodes.
        sources: files and folders. A file that cannot be read is an error; in a folder it is left out and reported.
        out: the file to write; only a whole one replaces what is there.
        length, target, decode_options: see ``Tokenizer.encode``.
        entropy: ``static`` to entropy-code with the frequencies of these very tokens, which are put into the file; a
            prior (a table or a model), or where one is, to code with that and store its hash. None packs.
        crop: how pictures become square; None takes the tokenizer's card's.
        batch_size: pictures at a time.
        progress: show a bar.
    Returns:
        ``images`` (their names: paths inside folders, else file names), ``unreadable``, ``not_reached`` (names of those that
        miss the target), ``tokens`` (most of an image), ``tokens_per_image``, ``bytes`` (of the file),
        ``bytes_per_image`` (mean of their records), ``weight_hash``.
    Raises:
        DataError: no picture, or a named one that cannot be read.
        VistokError: options that do not fit the tokenizer.
    """
    out = Path(out)
    target = None if target is None else Target.parse(target)
    if target is not None and length is not None:
        raise VistokError("either a length or a target is wanted, got both")
    files = _listed(sources)
    table = None
    if entropy is not None:
        require("constriction", extra="codec", purpose="entropy coding of tokens")
        if tokenizer.continuous:
            raise VistokError(f"{tokenizer.name or tokenizer.family} has continuous tokens; entropy coding is for ids")
        if entropy != "static":
            table = entropy if isinstance(entropy, EntropyCoder) else load_prior(entropy)
    images: list[str] = []
    unreadable: list[str] = []
    not_reached: list[str] = []

    def tokens_of(names: list[str], pictures: Tensor) -> Tokens:
        tokens = tokenizer.encode(pictures, length=length).to("cpu")
        if target is None:
            return tokens
        on_device = pictures.to(tokenizer.device)
        found = find_lengths(tokenizer, on_device, tokens, target, decode_options=decode_options)
        not_reached.extend(name for name, good in zip(names, found.reached.tolist(), strict=True) if not good)
        return tokens.truncate(found.lengths)

    # Frequencies are known when all is encoded; until then the packed tokens wait in a file of their own.
    first = out.with_name(f".{out.name}.{secrets.token_hex(4)}.packed.tmp") if entropy == "static" else out
    try:
        with tqdm(total=len(files), unit="picture", desc="encode", disable=None if progress else True) as bar:
            batches = _read(files, tokenizer, crop, batch_size, unreadable, bar.update)
            writer = TokenWriter(first, prior=table, embed=False)
            with writer:
                for names, pictures in batches:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    writer.write(tokens_of(names, pictures), names)
                    images += names
                if not images:
                    raise DataError(f"none of {len(files)} pictures can be read: {', '.join(unreadable[:5])}")
        if entropy == "static":
            with TokenFile.open(first) as file:
                table = FrequencyTable.fit(file.batches(256), unseen=0.0)
            recode(first, out, prior=table)
    finally:
        if first != out:
            first.unlink(missing_ok=True)
    with TokenFile.open(out, prior=table) as file:
        return {
            "out": str(out),
            "images": images,
            "unreadable": unreadable,
            "not_reached": not_reached,
            "tokens": int(file.lengths.max()),
            "tokens_per_image": float(file.lengths.mean()),
            "bytes": file.num_bytes,
            "bytes_per_image": float(file.sizes.mean()),
            "weight_hash": file.layout.weight_hash,
        }


def load_prior(where: str | Path) -> EntropyCoder:
    """A prior of entropy coding: the file of a ``FrequencyTable``, or a generator by name, hub id or folder.

    Raises:
        VistokError: neither.
    """
    path = Path(where)
    if path.is_file() and path.suffix not in CHECKPOINT_SUFFIXES:
        return FrequencyTable.load(path)
    return LearnedPrior(from_pretrained(where))


def decode_file(
    tokenizer: Tokenizer,
    tokens: TokenFile | Sequence[Tokens],
    out: str | Path,
    *,
    rows: Sequence[int] | None = None,
    length: int | None = None,
    names: bool = False,
    condition: Conditions = lambda _: None,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Path]:
    """Decode images of a token file into PNG files.

    Args:
        tokenizer: what decodes.
        tokens: an open file, or its images one by one (as ``TokenFile.recover`` gives them).
        out: a folder; it is made when the first picture is written.
        rows: which images; None takes all.
        length: decode only this many leading tokens.
        names: call the pictures as the file does (with sub-folders), instead of by their number.
        condition: of so many images, for conditional tokenizers.
        batch_size: images at a time.
        progress: show a bar.
    Returns:
        the files, in order.
    Raises:
        VistokError: no such image; no names, or names that lead out of the folder.
    """
    count = len(tokens)
    chosen = list(range(count)) if rows is None else [_checked_row(row, count) for row in rows]
    known = tokens.names if isinstance(tokens, TokenFile) else []
    if names and not known:
        raise VistokError("this token file has no names of its images; leave --names away")
    paths = _picture_names([known[row] for row in chosen]) if names else [f"{row:05d}.png" for row in chosen]
    written: list[Path] = []
    with tqdm(total=len(chosen), unit="picture", desc="decode", disable=None if progress else True) as bar:
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            batch = tokens[part] if isinstance(tokens, TokenFile) else Tokens.cat([tokens[row] for row in part])
            batch = batch if length is None else batch.truncate(length)
            for image, path in zip(
                tokenizer.decode(batch, condition=condition(len(part))), paths[start:], strict=False
            ):
                target = Path(out) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                save_image(image, target)
                written.append(target)
            bar.update(len(part))
    return written


def _listed(sources: Sequence[str | Path]) -> list[tuple[Path, str, bool]]:
    """Pictures: path, name, and whether it was named itself."""
    files: list[tuple[Path, str, bool]] = []
    for source in map(Path, sources):
        if source.is_dir():
            files += [(path, path.relative_to(source).as_posix(), False) for path in image_files(source)]
        else:
            files.append((source, source.name, True))
    if not files:
        raise DataError(f"there are no pictures in {', '.join(map(str, sources))}")
    return files


def _read(
    files: Iterable[tuple[Path, str, bool]],
    tokenizer: Tokenizer,
    crop: str | None,
    batch_size: int,
    unreadable: list[str],
    tell: Callable[[int], Any],
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of names and pictures; what cannot be read is appended to ``unreadable``."""
    names: list[str] = []
    pictures: list[Tensor] = []
    for path, name, wanted in files:
        try:
            picture = load_images(path, like=tokenizer, crop=crop)
        except DataError as error:
            if wanted:
                raise
            logger.warning("left out: %s", error)
            unreadable.append(name)
            tell(1)
            continue
        names.append(name)
        pictures.append(picture)
        if len(names) == batch_size:
            yield names, torch.cat(pictures)
            tell(len(names))
            names, pictures = [], []
    if names:
        yield names, torch.cat(pictures)
        tell(len(names))


def _checked_row(row: int, count: int) -> int:
    if not -count <= row < count:
        raise VistokError(f"this token file has the images 0 to {count - 1}, got {row}")
    return row % count


def _picture_names(names: Sequence[str]) -> list[str]:
    """Relative paths of PNG files; a file can be written by anyone, so none may lead out of the folder."""
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        windows = PureWindowsPath(name)
        if (
            path.is_absolute()
            or windows.drive
            or windows.root
            or ".." in windows.parts
            or "\0" in name
            or not path.name
        ):
            raise TokenFileError(
                f"the name {name!r} in this token file leads out of the folder; decode it without --names"
            )
        short = str(path.with_suffix(".png"))
        number, unique = 1, short if short not in taken else f"{path}.png"
        while unique in taken:
            number += 1
            unique = f"{path}.{number}.png"
        taken.add(unique)
        out.append(unique)
    return out
