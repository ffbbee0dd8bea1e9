"""How close a set of generated images is to a reference: the Fréchet distance under a named protocol (gFID)."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vistok.data.sources import ImageSource, open_source
from vistok.data.transforms import check_names, crop_image, to_tensor
from vistok.errors import CheckpointError, ConfigError, DataError
from vistok.generate.sample_set import IMAGE_FOLDER, NPZ_FILE
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Features, gather_instruments
from vistok.metrics.processes import sum_over_processes
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.result import describe_run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vistok.metrics.features import FeatureExtractor

logger = logging.getLogger(__name__)


def evaluate_generation(
    samples: ImageSource,
    reference: ImageSource | FeatureStats,
    *,
    protocol: str | Protocol = "titok",
    image_size: int | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    features: Features = "auto",
    weights: str | None = None,
    download: bool = True,
    accelerator: Accelerator | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """The Fréchet distance of samples from a reference.

    Args:
        samples: as they were written; they are measured at their own size.
        reference: pictures, cropped as the protocol says to ``image_size``; or statistics of them.
        protocol: a name of ``list_protocols()``, or a Protocol.
        image_size: of the reference's pictures; None takes the samples'.
        batch_size: images at a time, in each process.
        limit: take this many samples, evenly spaced; None takes all.
        features, weights, download: see ``evaluate_reconstruction``.
        accelerator: shares the images between processes.
        device: of the extractor, without an accelerator.
        progress: show bars.
    Returns:
        What JSON can hold: the distance by the name of its features (``fid`` or ``fd_lite0``), counts, protocol, sources.
    Raises:
        CheckpointError: the features cannot be had.
        DataError: pictures that cannot be read, or too few: a distance of part of a set would be another number.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    check_names(protocol.crop, protocol.interpolation)
    for option, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is 1 or more, got {value}")
    device = torch.device(device) if accelerator is None else accelerator.device
    found = gather_instruments(
        protocol,
        features=features,
        weights=weights,
        lpips=False,
        download=download,
        accelerator=accelerator,
        device=device,
    )
    extractor = found.extractor
    if extractor is None:
        raise CheckpointError(f"there are no features to measure with: {found.left_out['fid']}")
    share = _Share(extractor, batch_size, accelerator, device, progress)
    count = len(samples) if limit is None else min(limit, len(samples))
    own = share.statistics(samples, count, None, None, "samples")
    if isinstance(reference, FeatureStats):
        stats, described = reference, {"spec": "statistics", "size": reference.n}
    else:
        size = image_size or samples.image(0).height
        stats = share.statistics(reference, len(reference), size, protocol, "reference")
        described = {"spec": reference.spec, "size": len(reference), "listing_hash": reference.listing_hash()}
    notes = list(found.notes)
    for what, statistics in (("samples", own), ("reference", stats)):
        if statistics.n is not None and statistics.n <= extractor.dims:
            notes.append(
                f"{statistics.n} {what} are too few for {extractor.dims} features: the distance is far too high or low"
            )
    return {
        "kind": "generation",
        extractor.metric: frechet_distance(own, stats),
        "metric": extractor.metric,
        "samples": {"spec": samples.spec, "size": count, "listing_hash": samples.listing_hash()},
        "reference": described,
        "protocol": dataclasses.asdict(protocol),
        "features": found.describe(),
        "notes": notes,
        "processes": 1 if accelerator is None else accelerator.num_processes,
        **describe_run(device, found.packages),
        "seconds": time.perf_counter() - started,
    }


class _Share:
    """This process's part of the features of a set."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int,
        accelerator: Accelerator | None,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.extractor, self.batch_size, self.accelerator, self.device = extractor, batch_size, accelerator, device
        self.progress = progress and (accelerator is None or accelerator.is_main_process)

    @torch.no_grad()
    def statistics(
        self, source: ImageSource, count: int, size: int | None, protocol: Protocol | None, what: str
    ) -> FeatureStats:
        """Of ``count`` pictures, evenly spaced; the same on all processes."""
        rank, processes = (
            (0, 1) if self.accelerator is None else (self.accelerator.process_index, self.accelerator.num_processes)
        )
        places = list(range(count))[rank::processes]
        where = self.device if self.device.type == "cuda" else "cpu"  # others may lack double precision
        stats = FeatureStats(self.extractor.dims, features=self.extractor.name, device=where)
        problem = ""
        with tqdm(total=len(places), unit="image", desc=what, disable=not self.progress) as bar:
            for start in range(0, len(places), self.batch_size):
                try:
                    batch = [
                        _read(source, place * len(source) // count, size, protocol)
                        for place in places[start : start + self.batch_size]
                    ]
                    stats.update(self.extractor(torch.stack(batch).to(self.device)))
                except (DataError, RuntimeError) as error:
                    problem = str(error)
                    break
                bar.update(len(batch))
        failed = int(sum_over_processes(torch.tensor(int(bool(problem))), self.accelerator))
        if failed:  # on all processes, or those without a problem would wait for ever
            raise DataError(f"{what} {source.spec}: {problem or 'another process cannot read its pictures'}")
        stats.all_reduce(self.accelerator)
        return stats


def _read(source: ImageSource, index: int, size: int | None, protocol: Protocol | None) -> Tensor:
    picture = source.image(index)
    if size is None or protocol is None:
        return to_tensor(picture)
    return to_tensor(crop_image(picture, size, crop=protocol.crop, interpolation=protocol.interpolation))


def open_samples(where: str) -> ImageSource:
    """Samples: a folder that ``vistok generate`` wrote, an ``.npz``, any folder of pictures, or a data source."""
    path = Path(where)
    if path.is_dir():
        written = [part for part in (path / NPZ_FILE, path / IMAGE_FOLDER) if part.exists()]
        where = f"npz:{written[0]}" if written and written[0].is_file() else f"folder:{written[0] if written else path}"
    elif path.is_file():
        where = f"npz:{path}"
    return open_source(where, split="all")


def open_reference(spec: str, split: str | None) -> ImageSource | FeatureStats:
    """A reference: a data source, or the ``.npz`` of its statistics (``mu``, ``sigma``)."""
    from vistok.metrics.command import open_evaluated

    if Path(spec).is_file() and spec.endswith(".npz"):
        return FeatureStats.load(spec)
    return open_evaluated(spec, split)[0]
