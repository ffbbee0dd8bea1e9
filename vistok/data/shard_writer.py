"""Tokenize a source of pictures into a folder of shards: resumable, and the same however the work is shared.

A shard is made of the same pictures in the same batches whoever makes it, so its bytes are a function of the recipe. A shard
whose files are there and whole is not made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vistok.data.shard_files import (
    MANIFEST,
    Manifest,
    ShardFacts,
    ShardRecord,
    facts_path,
    record_path,
    tokens_path,
)
from vistok.data.sources import ImageSource
from vistok.data.views import Views
from vistok.errors import DataError, VistokError
from vistok.files import changed_settings, file_sha256, whole_file
from vistok.models.base import Tokenizer
from vistok.seeds import stable_seed
from vistok.token_file import TokenWriter

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_PATTERN = "shard-*"


def write_token_shards(
    tokenizer: Tokenizer,
    source: ImageSource,
    folder: str | Path,
    *,
    split: str = "",
    views: str = "center",
    crop: str = "center",
    interpolation: str = "bicubic",
    seed: int = 0,
    shard_size: int = 4096,
    limit: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Manifest:
    """Tokenize pictures and write them into a folder; a killed run goes on where it was.

    A picture that cannot be read is left out, counted and named in the manifest. A continuous tokenizer's latents are samples, as its
    decoder was trained on, drawn from the seed batch by batch.

    Args:
        tokenizer: makes ids or latents, on the device it is on.
        source: the pictures; see ``vistok.data.open_source``.
        folder: is made where it is missing; one that holds other tokens is refused.
        split: of the source, for the manifest.
        views: names of ``vistok.data.views``.
        crop, interpolation: names of ``vistok.data.transforms``.
        seed: of random views and of latents.
        shard_size: pictures a shard.
        limit: take this many pictures, evenly spaced over the source; None takes all.
        batch_size: views at a time, in each process.
        num_workers: processes that read pictures, for each process here.
        dtype: of the weights while they encode, and after; None leaves them. The tokens are filed under the hash of the weights as
            they came, which decode them in whatever type.
        accelerator: shares the shards between processes.
        progress: show a bar.
    Returns:
        the manifest.
    Raises:
        VistokError: options out of range, or a folder with other tokens.
        DataError: no picture can be read.
    """
    if min(batch_size, shard_size, 1 if limit is None else limit) < 1 or num_workers < 0:
        raise VistokError(
            f"batch_size, shard_size and limit are 1 or more, and num_workers 0 or more; got {batch_size}, {shard_size}, "
            f"{limit} and {num_workers}"
        )
    pictures = _Pictures(source, Views(views, tokenizer.image_size, crop, interpolation), seed, limit)
    per_batch = max(1, batch_size // pictures.views.count)
    weight_hash = tokenizer.weight_hash()
    tokenizer = tokenizer.to(dtype=dtype)
    recipe = _recipe(tokenizer, weight_hash, pictures, split, shard_size, per_batch)
    folder, main = Path(folder), accelerator is None or accelerator.is_main_process
    manifest = Manifest(json.loads(json.dumps(recipe)), tuple(source.classes))
    if main:
        _claim(folder, manifest)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    count = -(-len(pictures) // shard_size)
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    finished = {shard.number: shard for shard in Manifest.read(folder).shards}
    places = {
        number: range(number * shard_size, min((number + 1) * shard_size, len(pictures))) for number in range(count)
    }
    mine = range(rank, count, processes)
    with tqdm(total=sum(len(places[number]) for number in mine), unit="image", disable=not (progress and main)) as bar:
        missing = []
        for number in mine:
            if _is_whole(folder, finished.get(number) or _read_record(folder, number)):
                bar.update(len(places[number]))
            else:
                missing.append(number)
        batches = _read(pictures, [places[number] for number in missing], per_batch, num_workers, tokenizer.device)
        for number in missing:
            num_batches = -(-len(places[number]) // per_batch)
            _write_shard(tokenizer, weight_hash, batches, folder, number, num_batches, seed, bar)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if main:
        _finish(folder, manifest, count, finished)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return Manifest.read(folder)


@dataclass(frozen=True)
class _Batch:
    """Pictures of a batch: ``pixels`` uint8 [n * V, H, W, 3] of those that could be read, and the names of the others."""

    pixels: Tensor
    index: list[int]
    label: list[int]
    caption: list[str]
    unreadable: list[str]

    def pin_memory(self) -> _Batch:
        """What a loader calls to make the transfer to a GPU quick."""
        return _Batch(self.pixels.pin_memory(), self.index, self.label, self.caption, self.unreadable)


class _Pictures(Dataset[tuple[np.ndarray | None, int, int, str]]):
    """Views, index, label and caption of each chosen picture; None and its name where it cannot be read."""

    def __init__(self, source: ImageSource, views: Views, seed: int, limit: int | None) -> None:
        count = len(source) if limit is None else min(limit, len(source))
        if not count:
            raise DataError(f"the source {source.spec!r} is empty")
        self.source, self.views, self.seed, self._count = source, views, seed, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> tuple[np.ndarray | None, int, int, str]:
        index = place * len(self.source) // self._count
        try:
            pixels = self.views(self.source.image(index), index, self.seed)
            return pixels, index, self.source.label(index), self.source.caption(index)
        except DataError as error:
            logger.warning("%s: picture %d is left out: %s", self.source.spec, index, error)
            return None, index, -1, self.source.name(index)

    def collate(self, items: Sequence[tuple[np.ndarray | None, int, int, str]]) -> _Batch:
        read = [item for item in items if item[0] is not None]
        size = self.views.size
        pixels = np.concatenate([item[0] for item in read]) if read else np.zeros((0, size, size, 3), np.uint8)
        _, index, label, caption = zip(*read, strict=True) if read else ((),) * 4
        unreadable = [item[3] for item in items if item[0] is None]
        return _Batch(torch.from_numpy(pixels), list(index), list(label), list(caption), unreadable)


def _read(
    pictures: _Pictures, shards: Sequence[range], size: int, num_workers: int, device: torch.device
) -> Iterator[_Batch]:
    """The batches of shards, one shard after the other; workers read on while the tokenizer works."""
    loader = DataLoader(
        pictures,
        batch_sampler=[part[start : start + size] for part in shards for start in range(0, len(part), size)],
        num_workers=num_workers,
        collate_fn=pictures.collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it would draw from the global one
    )
    return iter(loader)


def _write_shard(
    tokenizer: Tokenizer,
    weight_hash: str,
    batches: Iterator[_Batch],
    folder: Path,
    number: int,
    num_batches: int,
    seed: int,
    bar: tqdm,
) -> None:
    """One shard: its tokens, its facts, and last of all its record."""
    index, label, caption, unreadable = [], [], [], []
    record_path(folder, number).unlink(missing_ok=True)
    writer = TokenWriter(tokens_path(folder, number))
    try:
        for turn in range(num_batches):
            batch = next(batches)
            if batch.index:
                # A tensor and not the number 255, by whose rounded inverse a GPU would multiply.
                pixels = batch.pixels.to(tokenizer.device, non_blocking=True).permute(0, 3, 1, 2).float()
                images = pixels / torch.tensor(255.0, device=tokenizer.device)
                sampler = None
                if tokenizer.continuous:
                    sampler = torch.Generator().manual_seed(stable_seed(seed, "latents", number, turn))
                tokens = tokenizer.encode(images, generator=sampler).to("cpu")
                writer.write(tokens.replace(weight_hash=weight_hash))
            index += batch.index
            label += batch.label
            caption += batch.caption
            unreadable += batch.unreadable
            bar.update(len(batch.index) + len(batch.unreadable))
        if index:
            writer.close()
    finally:
        writer.abort()
    digests = ["", ""]
    if index:
        ShardFacts.of(index, label, caption).write(facts_path(folder, number))
        digests = [file_sha256(where(folder, number)) for where in (tokens_path, facts_path)]
    record = ShardRecord(number, len(index), *digests, tuple(unreadable))
    with whole_file(record_path(folder, number)) as file:
        file.write(json.dumps(asdict(record)).encode())


def _recipe(
    tokenizer: Tokenizer, weight_hash: str, pictures: _Pictures, split: str, shard_size: int, per_batch: int
) -> dict[str, Any]:
    """All that the tokens depend on, and how they are filed."""
    source, views = pictures.source, pictures.views
    recipe = {
        "tokenizer": {"name": tokenizer.name, "family": tokenizer.family, "weight_hash": weight_hash},
        "codebook_size": tokenizer.codebook_size,
        "num_tokens": tokenizer.num_tokens,
        "image_size": tokenizer.image_size,
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "ordered": tokenizer.ordered,
        "adaptive": tokenizer.adaptive,
        "data": source.spec,
        "split": split,
        "listing_hash": source.listing_hash(),
        "chosen_pictures": len(pictures),
        "crop": views.crop,
        "interpolation": views.interpolation,
        "views": views.spec,
        "num_views": views.count,
        "seed": pictures.seed,
        "shard_size": shard_size,
    }
    # Latents are drawn batch by batch; ids do not depend on the batch.
    return recipe | ({"pictures_per_batch": per_batch} if tokenizer.continuous else {})


def _claim(folder: Path, manifest: Manifest) -> None:
    """Write a manifest without shards, or see that the one already there is of the same recipe; remove what was left unfinished."""
    if (folder / MANIFEST).exists():
        changed = changed_settings(Manifest.read(folder).recipe, manifest.recipe)
        if changed:
            raise VistokError(f"{folder} holds tokens made otherwise: {changed}; choose another folder, or remove it")
        for path in folder.glob(f".{_PATTERN}.tmp"):
            path.unlink()
        return
    if any(folder.glob(_PATTERN)):
        raise VistokError(f"{folder} holds shards but no {MANIFEST} that says whose they are; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)


def _read_record(folder: Path, number: int) -> ShardRecord | None:
    try:
        record = ShardRecord.from_dict(json.loads(record_path(folder, number).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # none, or torn: the shard is made again
    return record if record.number == number else None


def _is_whole(folder: Path, record: ShardRecord | None) -> bool:
    return record is not None and not record.damage(folder)


def _finish(folder: Path, manifest: Manifest, count: int, finished: dict[int, ShardRecord]) -> None:
    """The manifest of all shards; their own records go."""
    shards = [_read_record(folder, number) or finished[number] for number in range(count)]
    manifest = Manifest(manifest.recipe, manifest.classes, tuple(shards))
    if not manifest.pictures:
        names = [name for shard in shards for name in shard.unreadable]
        raise DataError(
            f"none of {len(names)} pictures of {manifest.recipe['data']!r} can be read: {', '.join(names[:5])}"
        )
    manifest.write(folder)
    for number in range(count):
        record_path(folder, number).unlink(missing_ok=True)
