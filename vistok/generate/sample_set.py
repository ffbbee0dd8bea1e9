"""Many images out of a generator: balanced over conditions, resumable, and the same however the work is shared.

Image i has a condition and a seed that depend on i alone. Images are made in chunks; a chunk that is there whole is not made
again, and processes share the chunks.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from vistok.data.transforms import to_uint8
from vistok.errors import DataError, VistokError
from vistok.files import claim_settings, whole_file
from vistok.generate.base import Generator
from vistok.generate.pairing import check_pair, same_origin
from vistok.models.base import Tokenizer, tensor_hash
from vistok.seeds import stable_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

SampleFormat = Literal["png", "npz"]
SETTINGS_FILE, INDEX_FILE, NPZ_FILE, IMAGE_FOLDER = "samples.json", "samples.csv", "samples.npz", "images"
_PART_FOLDER = "parts"


@dataclass(frozen=True)
class SamplePlan:
    """Which images are to be made.

    Attributes:
        num: how many.
        conditions: taken in turn, so that every condition has as many images as any other, up to one; (None,) for none.
        seed: of the set; image i has a seed of its own.
        labels: class numbers of the conditions, where they are classes.
    """

    num: int
    conditions: tuple[Any, ...] = (None,)
    seed: int = 0
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num < 1 or not self.conditions:
            raise VistokError(f"a set has one image and one condition or more, got {self.num} and {self.conditions}")

    def condition(self, index: int) -> Any:
        """Of image ``index``."""
        return self.conditions[index % len(self.conditions)]

    def label(self, index: int) -> int:
        """Class number of image ``index``, -1 for none."""
        return -1 if self.labels is None else self.labels[index % len(self.labels)]

    def seed_of(self, index: int) -> int:
        """Of image ``index``."""
        return stable_seed(self.seed, "sample", index)


def condition_record(condition: Any) -> str | int | None:
    """A condition as records have it: texts and numbers as they are, tensors and what consists of them by a fingerprint."""
    if isinstance(condition, (str, int, type(None))):
        return condition
    if isinstance(condition, Tensor):
        return f"tensor {list(condition.shape)} {tensor_hash(condition)}"
    if is_dataclass(condition):
        parts = {entry.name: condition_record(getattr(condition, entry.name)) for entry in fields(condition)}
        return f"{type(condition).__name__}({', '.join(f'{name}={value}' for name, value in parts.items())})"
    return repr(condition)


def write_samples(
    generator: Generator,
    tokenizer: Tokenizer,
    plan: SamplePlan,
    folder: str | Path,
    *,
    file_format: SampleFormat = "png",
    length: int | None = None,
    batch_size: int = 64,
    chunk_size: int = 256,
    decode_condition: Callable[[Sequence[Any]], Any] | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    **sampling: Any,
) -> dict[str, Any]:
    """Make a set of images and write it into a folder; a killed run goes on where it was.

    ``png``: ``images/00000000.png`` ...; ``npz``: one file as ADM's evaluator takes it, ``arr_0`` uint8 [N, H, W, 3] and, of classes,
    ``arr_1`` int64 [N]. Beside them ``samples.json``, which says how they were made, and ``samples.csv``: file or row, condition and seed of
    each image.

    Args:
        generator, tokenizer: on the same device.
        plan: which images.
        folder: is made where it is missing; one that holds another set is refused.
        file_format: ``png`` or ``npz``.
        length: tokens an image, for ordered tokenizers; None is all.
        batch_size: images at a time.
        chunk_size: images that are made and counted as one piece of work.
        decode_condition: of a tokenizer that decodes with a condition: the images' conditions to what it takes.
        accelerator: shares the chunks between processes.
        progress: show a bar.
        sampling: differences from the generator's defaults.
    Returns:
        the content of ``samples.json``.
    Raises:
        VistokError: models that do not fit each other, options out of range, a folder with another set.
    """
    if file_format not in get_args(SampleFormat):
        raise VistokError(f"images are written as {' or '.join(get_args(SampleFormat))}, got {file_format!r}")
    if min(batch_size, chunk_size) < 1:
        raise VistokError(f"batch_size and chunk_size are 1 or more, got {batch_size} and {chunk_size}")
    length = generator.num_tokens if length is None else length
    check_pair(generator, tokenizer, length)
    if tokenizer.conditional and decode_condition is None:
        raise VistokError(f"{tokenizer.name or tokenizer.family} decodes with a condition; give decode_condition")
    generator.encode_condition(list(plan.conditions[:1]))  # an unknown condition is an error before any work is done
    folder = Path(folder)
    settings = _settings(generator, tokenizer, plan, file_format, length, chunk_size, sampling)
    main = accelerator is None or accelerator.is_main_process
    if main:
        _claim(folder, settings)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    share = slice(0, None) if accelerator is None else slice(accelerator.process_index, None, accelerator.num_processes)
    finished = (folder / NPZ_FILE).exists()
    chunks = [] if finished else list(range(0, plan.num, chunk_size))[share]
    warned = False
    with tqdm(
        total=sum(min(chunk_size, plan.num - start) for start in chunks), unit="image", disable=not (progress and main)
    ) as bar:
        for start in chunks:
            indices = range(start, min(start + chunk_size, plan.num))
            missing = _missing(folder, file_format, indices, chunk_size)
            bar.update(len(indices) - len(missing))
            made: list[np.ndarray] = []
            for first in range(0, len(missing), batch_size):
                batch = missing[first : first + batch_size]
                conditions = [plan.condition(index) for index in batch]
                seeds = [plan.seed_of(index) for index in batch]
                tokens = generator.generate(conditions, seeds=seeds, length=length, **sampling).tokens
                warned = warned or not same_origin(tokens, tokenizer)
                given = {} if decode_condition is None else {"condition": decode_condition(conditions)}
                pixels = to_uint8(tokenizer.decode(tokens, **given)).permute(0, 2, 3, 1).cpu().numpy()
                if file_format == "png":
                    for index, picture in zip(batch, pixels, strict=True):
                        with whole_file(_image_path(folder, index)) as file:
                            Image.fromarray(picture).save(file, format="PNG")
                else:
                    made.append(pixels)
                bar.update(len(batch))
            if made:
                with whole_file(_part_path(folder, start // chunk_size)) as file:
                    np.save(file, np.concatenate(made))
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if main:
        _write_index(folder, plan, file_format)
        if file_format == "npz" and not finished:
            _join(folder, plan, chunk_size)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return settings


def _settings(
    generator: Generator,
    tokenizer: Tokenizer,
    plan: SamplePlan,
    file_format: str,
    length: int,
    chunk_size: int,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """All that the images depend on, and how they are filed."""
    from vistok.config import to_dict

    def describe(model: Any) -> dict[str, str]:
        return {"name": model.name, "family": model.family, "weight_hash": model.weight_hash()}

    conditions = list(plan.conditions)
    return {
        "kind": "samples",
        "generator": describe(generator),
        "tokenizer": describe(tokenizer),
        "num": plan.num,
        "seed": plan.seed,
        "conditions": [condition_record(value) for value in conditions],
        "length": length,
        "sampling": json.loads(json.dumps(to_dict(generator.sampling.updated(**sampling)))),
        "dtype": str(generator.dtype).removeprefix("torch."),
        "image_size": tokenizer.image_size,
        "format": file_format,
        "chunk_size": chunk_size,
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or see that those already there are the same."""
    path = folder / SETTINGS_FILE
    if not path.exists() and ((folder / IMAGE_FOLDER).exists() or (folder / NPZ_FILE).exists()):
        raise VistokError(
            f"{folder} holds images but no {SETTINGS_FILE} that says whose they are; choose another folder"
        )
    claim_settings(path, settings, holds="samples made otherwise")


def _image_path(folder: Path, index: int) -> Path:
    return folder / IMAGE_FOLDER / f"{index:08d}.png"


def _part_path(folder: Path, number: int) -> Path:
    return folder / _PART_FOLDER / f"{number:06d}.npy"


def _missing(folder: Path, file_format: str, indices: range, chunk_size: int) -> list[int]:
    """Those images of a chunk that have to be made."""
    if file_format == "npz":
        return [] if _part_path(folder, indices.start // chunk_size).exists() else list(indices)
    return [index for index in indices if not _image_path(folder, index).exists()]


def _write_index(folder: Path, plan: SamplePlan, file_format: str) -> None:
    with whole_file(folder / INDEX_FILE) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(["image", "condition", "label", "seed"])
        for index in range(plan.num):
            name = f"{IMAGE_FOLDER}/{index:08d}.png" if file_format == "png" else index
            condition = plan.condition(index)
            writer.writerow([name, "" if condition is None else condition, plan.label(index), plan.seed_of(index)])
        text.detach()  # writes what is left, and leaves the file open


def _join(folder: Path, plan: SamplePlan, chunk_size: int) -> None:
    """All parts as one ``.npz``, part by part, so that fifty thousand images need no memory; then the parts go."""
    parts = [_part_path(folder, number) for number in range(-(-plan.num // chunk_size))]
    shape = (plan.num, *np.load(parts[0], mmap_mode="r").shape[1:])
    with (
        whole_file(folder / NPZ_FILE) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for part in parts:
                member.write(np.load(part).tobytes())
        if plan.labels is not None:
            labels = np.array([plan.label(index) for index in range(plan.num)], dtype=np.int64)
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels)
    for part in parts:
        part.unlink()
    (folder / _PART_FOLDER).rmdir()


def read_prompts(path: str | Path) -> list[str]:
    """The texts of a file, a line each; empty lines do not count.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompts; a text a line is wanted")
    return prompts


def first_images(folder: str | Path, count: int) -> torch.Tensor:
    """The first images of a set that is complete, float [n, 3, H, W] in [0, 1]."""
    folder = Path(folder)
    if (folder / NPZ_FILE).exists():
        with np.load(folder / NPZ_FILE) as file:
            pixels = file["arr_0"][:count]
    else:
        paths = sorted((folder / IMAGE_FOLDER).glob("*.png"))[:count]
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255.0
