"""The features of a whole set of images: shared out between processes, kept in files on request, the same whoever makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vistok.data.sources import ImageSource
from vistok.data.transforms import crop_image, to_tensor
from vistok.errors import DataError
from vistok.files import whole_file
from vistok.metrics.extractor import FeatureExtractor
from vistok.metrics.frechet import FeatureStats
from vistok.metrics.processes import gather_objects, sum_over_processes
from vistok.metrics.protocols import Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator

_CHUNK = 256  # images of a piece of work; whole batches
_LISTED = 100


def evenly_spaced(size: int, count: int | None) -> list[int]:
    """``count`` places of ``size``, evenly spaced; all for None, or where there are no more."""
    count = size if count is None else min(count, size)
    return [place * size // count for place in range(count)]


@dataclass(frozen=True)
class FeatureSet:
    """Features of N images, in the order of the source.

    Attributes:
        layers: ``pooled`` float32 [N, D], and others by name.
        skipped: names of pictures that could not be read.
        features: name of the extractor.
    """

    layers: dict[str, Tensor]
    skipped: tuple[str, ...] = ()
    features: str = ""

    def __len__(self) -> int:
        return len(self.layers["pooled"])

    @property
    def pooled(self) -> Tensor:
        """float32 [N, D]."""
        return self.layers["pooled"]

    def stats(self, layer: str = "pooled") -> FeatureStats:
        """Mean and covariance, which are the same whatever made the features."""
        name = self.features if layer == "pooled" else f"{self.features}/{layer}"
        stats = FeatureStats(self.layers[layer].shape[1], features=name)
        for part in self.layers[layer].split(_CHUNK):
            stats.update(part)
        return stats


@dataclass
class FeatureWork:
    """How features are made.

    Attributes:
        extractor: the network.
        layers: of the extractor, besides ``pooled``.
        batch_size: images at a time; a process takes whole batches, so results do not depend on the number of processes.
        num_workers: processes that read pictures ahead of the network, for each process here.
        accelerator: shares the work. None: this process does all.
        device: of the network.
        cache: folder to keep features in; a killed run goes on from there, and a reference is read once.
        skip_unreadable: leave out, and name, what cannot be read, which is an error otherwise.
        progress: show bars.
        chunk: images of a piece of work, which one process does and which is kept as one file; whole batches.
    """

    extractor: FeatureExtractor
    layers: tuple[str, ...] = ()
    batch_size: int = 32
    num_workers: int = 0
    accelerator: Accelerator | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None
    skip_unreadable: bool = False
    progress: bool = True
    chunk: int = field(default_factory=lambda: _CHUNK)

    def collect(
        self,
        source: ImageSource,
        what: str,
        *,
        count: int | None = None,
        places: Sequence[int] | None = None,
        size: int | tuple[int, int] | None = None,
        protocol: Protocol,
    ) -> FeatureSet:
        """Features of a source.

        Args:
            source: the pictures.
            what: is said beside the bar, and in errors.
            count: take this many, evenly spaced; None takes all.
            places: take these instead, in this order.
            size: crop to this side as the protocol says; (width, height) wants pictures of just that size; None takes them as they
                are, of one size.
            protocol: crop, interpolation and rounding.
        Raises:
            DataError: pictures that cannot be read, and are not to be skipped; or of different sizes.
        """
        if places is None:
            places = evenly_spaced(len(source), count)
        count = len(places)
        rank, processes = (
            (0, 1) if self.accelerator is None else (self.accelerator.process_index, self.accelerator.num_processes)
        )
        step = max(1, self.chunk // self.batch_size) * self.batch_size
        starts = list(range(0, count, step))
        folder = self._folder(source, places, size, protocol)
        wanted = first_size(source, places) if size is None else size
        chunks: dict[int, dict[str, Any]] = {}
        problem = ""
        with tqdm(total=count, unit="image", desc=what, disable=not self.progress or rank > 0) as bar:
            for start in starts[rank::processes]:
                try:
                    chunk = _load(folder, start)
                    if chunk is None:
                        chunk = self._chunk(
                            source,
                            places[start : start + step],
                            wanted,
                            protocol,
                            lambda n: bar.update(min(n * processes, count - bar.n)),
                        )
                        _save(folder, start, chunk)
                    chunks[start] = chunk
                except (DataError, RuntimeError) as error:
                    problem = str(error)
                    break
        failed = int(sum_over_processes(torch.tensor(int(bool(problem))), self.accelerator))
        if failed:  # on all processes, or those without a problem would wait for ever
            raise DataError(f"{what} {source.spec}: {problem or 'another process cannot read its pictures'}")
        parts = {start: chunk for one in gather_objects(chunks, self.accelerator) for start, chunk in one.items()}
        skipped = tuple(name for start in starts for name in parts[start]["skipped"])
        layers = {
            name: torch.cat([parts[start]["layers"][name] for start in starts]) for name in ("pooled", *self.layers)
        }
        if not len(layers["pooled"]):
            raise DataError(f"{what} {source.spec}: none of {count} pictures can be read")
        return FeatureSet(layers, skipped, self.extractor.name)

    def _folder(
        self, source: ImageSource, places: Sequence[int], size: int | tuple[int, int] | None, protocol: Protocol
    ) -> Path | None:
        """Where this very set's features are kept."""
        if self.cache is None:
            return None
        facts = {
            "spec": source.spec,
            "content": source.content_hash(),
            "places": hashlib.sha256(json.dumps(list(places)).encode()).hexdigest(),
            "count": len(places),
            "size": size,
            "crop": [protocol.crop, protocol.interpolation] if isinstance(size, int) else None,
            "resize": protocol.resize,
            "extractor": [self.extractor.name, self.extractor.weight_hash],
            "layers": self.layers,
            "batch_size": self.batch_size,
            "chunk": self.chunk,
        }
        text = json.dumps(facts, sort_keys=True)
        folder = Path(self.cache) / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "about.json") as file:
            file.write(text.encode())
        return folder

    @torch.no_grad()
    def _chunk(
        self,
        source: ImageSource,
        places: Sequence[int],
        size: int | tuple[int, int],
        protocol: Protocol,
        done: Callable[[int], Any],
    ) -> dict[str, Any]:
        pictures = _Pictures(source, places, size, protocol)
        # A generator of its own, as the loader would draw from the global one.
        loader = DataLoader(
            pictures,
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=list,
            generator=torch.Generator(),
            prefetch_factor=4 if self.num_workers else None,
        )
        layers: dict[str, list[Tensor]] = {name: [] for name in ("pooled", *self.layers)}
        skipped: list[str] = []
        for items in loader:
            unlike = next((item for item in items if isinstance(item, _Unlike)), None)
            if unlike is not None:
                raise DataError(
                    f"{unlike.name} is {unlike.size}, and {pictures.wanted} are wanted: pictures of one set are of one size; crop them "
                    "(sample_size= or image_size=, --sample-size or --size)"
                )
            bad = [item for item in items if isinstance(item, _Unreadable)]
            if bad and not self.skip_unreadable:
                raise DataError(
                    f"{bad[0].name}: {bad[0].reason}; leave it away, or skip what cannot be read (skip_unreadable, --skip-unreadable)"
                )
            skipped += [item.name for item in bad]
            images = [item for item in items if not isinstance(item, _Unreadable)]
            if images:
                batch = torch.stack(images).to(self.device, non_blocking=True).float() / 255
                for name, values in self.extractor.every(batch, self.layers).items():
                    layers[name].append(values.cpu())
            done(len(items))
        widths = {"pooled": self.extractor.dims}
        joined = {
            name: torch.cat(parts) if parts else torch.zeros(0, widths.get(name, 0)) for name, parts in layers.items()
        }
        return {"layers": joined, "skipped": skipped}


class _Unreadable(NamedTuple):
    name: str
    reason: str


class _Unlike(NamedTuple):
    """A picture of another size than the set's."""

    name: str
    size: str


class _Pictures(Dataset[Any]):
    """Pictures as 8-bit tensors [3, H, W], or what is wrong with one."""

    def __init__(
        self, source: ImageSource, places: Sequence[int], size: int | tuple[int, int], protocol: Protocol
    ) -> None:
        self.source, self.places, self.size, self.protocol = source, places, size, protocol

    @property
    def wanted(self) -> str:
        """The size, in words."""
        return _pixels(self.size if isinstance(self.size, tuple) else (self.size, self.size))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor | _Unreadable | _Unlike:
        place = self.places[index]
        try:
            picture = self.source.image(place)
        except DataError as error:
            return _Unreadable(self.source.name(place), str(error))
        if isinstance(self.size, int):
            crop, interpolation = self.protocol.crop, self.protocol.interpolation
            picture = crop_image(picture, self.size, crop=crop, interpolation=interpolation)
        elif picture.size != self.size:
            return _Unlike(self.source.name(place), _pixels(picture.size))
        return (to_tensor(picture) * 255).round().to(torch.uint8)


def first_size(source: ImageSource, places: Sequence[int]) -> tuple[int, int]:
    """Width and height of the first picture that can be read.

    Raises:
        DataError: there is none.
    """
    for place in places:
        try:
            return source.image(place).size
        except DataError:
            continue
    raise DataError(f"none of the {len(places)} pictures of {source.spec} can be read")


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _save(folder: Path | None, start: int, chunk: dict[str, Any]) -> None:
    if folder is None:
        return
    arrays = {name: values.numpy() for name, values in chunk["layers"].items()}
    with whole_file(folder / f"chunk-{start:09d}.npz") as file:
        np.savez(file, skipped=np.array(json.dumps(chunk["skipped"])), **arrays)


def _load(folder: Path | None, start: int) -> dict[str, Any] | None:
    """A finished chunk; None where there is none, or a damaged one."""
    path = None if folder is None else folder / f"chunk-{start:09d}.npz"
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            layers = {name: torch.from_numpy(file[name]) for name in file.files if name != "skipped"}
            return {"layers": layers, "skipped": json.loads(str(file["skipped"]))}
    except Exception:  # whatever zipfile and numpy raise for a damaged file: it is made again
        return None
