"""How close a set of images is to a reference, under a named protocol: Fréchet and kernel distances, IS, precision, recall ..."""

from __future__ import annotations

import dataclasses
import logging
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vistok.data.sources import ImageSource, open_source
from vistok.data.transforms import check_names
from vistok.errors import CheckpointError, ConfigError, DataError
from vistok.generate.sample_set import IMAGE_FOLDER, NPZ_FILE
from vistok.metrics.extractor import file_hash
from vistok.metrics.feature_set import FeatureSet, FeatureWork
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Features, gather_instruments
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.result import describe_run
from vistok.metrics.set_metrics import (
    bootstrap_std,
    clip_mmd,
    density_coverage,
    inception_score,
    kernel_distance,
    precision_recall,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_KID_SUBSET = 1000
_FEW = 10_000  # below that many images, distances depend on the number by more than papers differ
_COVERAGE_NEIGHBOURS = 5


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        images: pictures; of an evaluator's file, those that precision and recall are measured with.
        stats, spatial: statistics that come instead of pictures.
        described: what a result says about it.
    """

    images: ImageSource | None = None
    stats: FeatureStats | None = None
    spatial: FeatureStats | None = None
    described: dict[str, Any] = dataclasses.field(default_factory=dict)


def evaluate_generation(
    samples: ImageSource,
    reference: ImageSource | FeatureStats | Reference,
    *,
    protocol: str | Protocol = "titok",
    image_size: int | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    features: Features = "auto",
    weights: str | None = None,
    download: bool = True,
    bootstrap: int = 0,
    cache: str | Path | None = None,
    num_workers: int = 0,
    skip_unreadable: bool = False,
    accelerator: Accelerator | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """The distances of samples from a reference, and what they have of its quality and variety.

    Args:
        samples: as they were written; they are measured at their own size.
        reference: pictures, cropped as the protocol says to ``image_size``; or statistics of them; or both, see ``open_reference``.
        protocol: a name of ``list_protocols()``, or a Protocol.
        image_size: of the reference's pictures; None takes the samples'.
        batch_size: images at a time, in each process.
        limit: take this many samples, evenly spaced; None takes all.
        features, weights, download: see ``evaluate_reconstruction``.
        bootstrap: resamples that the standard deviation of the Fréchet distance is taken from; 0 leaves it out.
        cache: folder to keep features in, from which a killed run goes on, and the next one has the reference.
        num_workers: processes that read pictures ahead of the network.
        skip_unreadable: leave out, and name, pictures that cannot be read; else they are an error, as a distance of
            part of a set is another number.
        accelerator: shares the images between processes.
        device: of the extractor, without an accelerator.
        progress: show bars.
    Returns:
        What JSON can hold: the Fréchet distance by the name of its features (``fid``, ``fd_lite0`` ...), ``kid``, ``sfid``, ``is``,
        ``precision``, ``recall``, ``density``, ``coverage``, ``cmmd``, as far as features and reference allow; ``confidence``,
        standard deviations by metric and where they are from; counts, protocol, sources, notes.
    Raises:
        CheckpointError: the features cannot be had.
        DataError: pictures that cannot be read.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    check_names(protocol.crop, protocol.interpolation)
    for option, value in (("batch_size", batch_size), ("limit", limit), ("bootstrap", bootstrap + 1)):
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
    work = FeatureWork(
        extractor,
        extractor.layers,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        device=device,
        cache=None if cache is None else Path(cache),
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    reference = _as_reference(reference)
    count = len(samples) if limit is None else min(limit, len(samples))
    own = work.collect(samples, "samples", count=count, protocol=protocol)
    theirs: FeatureSet | None = None
    if reference.images is not None:
        size = image_size or samples.image(0).height
        theirs = work.collect(reference.images, "reference", size=size, protocol=protocol)
    numbers, confidence, notes = _measure(own, theirs, reference, protocol, extractor.metric, bootstrap)
    skipped = {"samples": own.skipped, "reference": () if theirs is None else theirs.skipped}
    return {
        "kind": "generation",
        **numbers,
        "confidence": confidence,
        "metric": extractor.metric,
        "samples": {"spec": samples.spec, "size": len(own), "listing_hash": samples.listing_hash()},
        "reference": reference.described | ({} if theirs is None else {"images": len(theirs)}),
        "skipped": {name: {"count": len(names), "names": list(names[:100])} for name, names in skipped.items()},
        "protocol": dataclasses.asdict(protocol),
        "features": found.describe(),
        "notes": [*found.notes, *notes],
        "processes": 1 if accelerator is None else accelerator.num_processes,
        "batch_size": batch_size,
        **describe_run(device, found.packages),
        "seconds": time.perf_counter() - started,
    }


def _as_reference(reference: ImageSource | FeatureStats | Reference) -> Reference:
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, FeatureStats):
        return Reference(stats=reference, described={"spec": "statistics", "size": reference.n})
    described = {"spec": reference.spec, "size": len(reference), "listing_hash": reference.listing_hash()}
    return Reference(images=reference, described=described)


def _measure(
    own: FeatureSet,
    theirs: FeatureSet | None,
    reference: Reference,
    protocol: Protocol,
    metric: str,
    bootstrap: int,
) -> tuple[dict[str, float], dict[str, dict[str, Any]], list[str]]:
    """Numbers, their standard deviations, and what is to be said about them."""
    numbers: dict[str, float] = {}
    confidence: dict[str, dict[str, Any]] = {}
    stats, ours = reference.stats or theirs.stats(), own.stats()
    numbers[metric] = frechet_distance(ours, stats)
    notes = _count_notes(ours, stats)
    if bootstrap:

        def resampled(indices: torch.Tensor) -> float:
            layers = {"pooled": own.pooled[indices]}
            return frechet_distance(FeatureSet(layers, features=own.features).stats(), stats)

        std = bootstrap_std(resampled, len(own), resamples=bootstrap)
        confidence[metric] = {"std": std, "from": f"bootstrap of the samples, {bootstrap} resamples"}
    spatial = reference.spatial
    if "spatial" in own.layers and (spatial is not None or (reference.stats is None and theirs is not None)):
        numbers["sfid"] = frechet_distance(own.stats("spatial"), spatial or theirs.stats("spatial"))
    if "logits" in own.layers:
        splits = min(protocol.is_splits, len(own))
        score = inception_score(own.layers["logits"], splits=splits, shuffle=protocol.is_shuffle)
        name = "is" if metric == "fid" else "score_" + own.features
        numbers[name] = score.value
        confidence[name] = {"std": score.std, "from": f"{splits} splits"}
        if len(own) < 5000:
            notes.append(f"{len(own)} samples make an inception score that is too low; papers take 50,000")
    if theirs is None:
        notes.append("the reference is statistics: metrics that compare images with images are left out")
        return numbers, confidence, notes
    subset = min(_KID_SUBSET, len(own), len(theirs))
    suffix = "" if metric == "fid" else "_" + own.features
    if subset >= 2:
        distance = kernel_distance(own.pooled, theirs.pooled, subset_size=subset)
        numbers[f"kid{suffix}"] = distance.value
        confidence[f"kid{suffix}"] = {"std": distance.std, "from": f"100 subsets of {subset}"}
    pictures = theirs.pooled
    if protocol.neighbour_images and protocol.neighbour_images < len(pictures):
        chosen = np.random.RandomState(0).choice(len(pictures), protocol.neighbour_images, replace=False)
        pictures = pictures[torch.from_numpy(np.sort(chosen))]
    if min(len(own), len(pictures)) > max(protocol.neighbours, _COVERAGE_NEIGHBOURS):
        values = precision_recall(own.pooled, pictures, neighbours=protocol.neighbours)
        more = density_coverage(own.pooled, pictures, neighbours=_COVERAGE_NEIGHBOURS)
        for name, value, number in zip(
            ("precision", "recall", "density", "coverage"), (*values, *more), (len(own), len(pictures)) * 2, strict=True
        ):
            numbers[name + suffix] = value
            if name != "density":  # a share of so many images
                std = (max(value * (1 - value), 0.0) / number) ** 0.5
                confidence[name + suffix] = {"std": std, "from": f"a share of {number} images"}
    if metric == "fd_clip":
        numbers["cmmd"] = clip_mmd(own.pooled, theirs.pooled)
    return numbers, confidence, notes


def _count_notes(own: FeatureStats, theirs: FeatureStats) -> list[str]:
    """Warnings about numbers of images that distances are biased by."""
    notes = []
    for what, statistics in (("samples", own), ("reference", theirs)):
        n = statistics.n
        if n is not None and n <= own.dims:
            notes.append(f"{n} {what} are too few for {own.dims} features: the distance is far too high or low")
        elif n is not None and n < _FEW:
            notes.append(
                f"{n} {what}: the Fréchet distance falls with the number of images; compare it with sets of the same size only"
            )
    return notes


def open_samples(where: str) -> ImageSource:
    """Samples: a folder that ``vistok generate`` wrote, an ``.npz``, any folder of pictures, or a data source."""
    path = Path(where)
    if path.is_dir():
        written = [part for part in (path / NPZ_FILE, path / IMAGE_FOLDER) if part.exists()]
        where = f"npz:{written[0]}" if written and written[0].is_file() else f"folder:{written[0] if written else path}"
    elif path.is_file():
        where = f"npz:{path}"
    return open_source(where, split="all")


def open_reference(spec: str, split: str | None = None) -> ImageSource | Reference:
    """A reference: a data source, or an ``.npz`` of pytorch-fid, clean-fid, ADM or ``save_reference``.

    Such a file has statistics (``mu``, ``sigma``), and ADM's also those of sFID (``mu_s``, ``sigma_s``) and images (``arr_0``).
    """
    from vistok.metrics.command import open_evaluated

    path = Path(spec)
    if not (path.is_file() and spec.endswith(".npz")):
        return open_evaluated(spec, split)[0]
    names = _names_in(path)
    images = open_source(f"npz:{path}", split="all") if "arr_0" in names else None
    described = {"spec": spec, "file_hash": file_hash(path)}
    if "mu" not in names:
        return Reference(images=images, described=described) if images is not None else FeatureStats.load(path)
    spatial = FeatureStats.load(path, spatial=True) if "mu_s" in names else None
    stats = FeatureStats.load(path)
    return Reference(images, stats, spatial, described | {"size": stats.n})


def _names_in(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from error
