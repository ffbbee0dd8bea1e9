"""How close a set of images is to a reference, under a named protocol: Fréchet and kernel distances, IS, precision, recall ..."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names
from vistok.errors import CheckpointError, ConfigError, DataError
from vistok.metrics.clip_score import TextFit, measure_text_fit
from vistok.metrics.feature_set import FeatureSet, FeatureWork, evenly_spaced, first_size
from vistok.metrics.findings import Findings, measure_sets
from vistok.metrics.frechet import FeatureStats
from vistok.metrics.instruments import Features, gather_instruments
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.result import describe_run
from vistok.metrics.samples import Reference, Samples, as_reference

if TYPE_CHECKING:
    from accelerate import Accelerator


def evaluate_generation(
    samples: ImageSource,
    reference: ImageSource | FeatureStats | Reference,
    *,
    protocol: str | Protocol = "titok",
    image_size: int | None = None,
    sample_size: int | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    features: Features = "auto",
    weights: str | None = None,
    download: bool = True,
    bootstrap: int = 0,
    clip_score: bool = True,
    cache: str | Path | None = None,
    num_workers: int = 0,
    skip_unreadable: bool = False,
    accelerator: Accelerator | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """The distances of samples from a reference, and what they have of its quality and variety.

    Args:
        samples: as they were written, all of one size, which they are measured at.
        reference: pictures, cropped as the protocol says to ``image_size``; or statistics of them; or both, see ``open_reference``.
        protocol: a name of ``list_protocols()``, or a Protocol.
        image_size: of the reference's pictures; None takes the samples', and of samples that are no squares a reference of just
            their size.
        sample_size: crop the samples to this side first, as the protocol says.
        batch_size: images at a time, in each process.
        limit: take this many samples, evenly spaced; None takes all.
        features, weights, download: see ``evaluate_reconstruction``.
        bootstrap: resamples, 2 or more, that the standard deviations of Fréchet distances and of CMMD are taken from; 0 leaves them out.
        clip_score: measure how well samples fit their texts, where they have some (see ``open_samples``) and the protocol's CLIP
            can be had.
        cache: folder to keep features in, from which a killed run goes on, and the next one has the reference.
        num_workers: processes that read pictures ahead of the network.
        skip_unreadable: leave out, and name, pictures that cannot be read; else they are an error, as a distance of
            part of a set is another number.
        accelerator: shares the images between processes.
        device: of the extractor, without an accelerator.
        progress: show bars.
    Returns:
        What JSON can hold: the Fréchet distance by the name of its features (``fid``, ``fd_lite0`` ...), ``kid``, ``sfid``, ``is``,
        ``precision``, ``recall``, ``density``, ``coverage``, ``cmmd``, ``clip_score`` (0 to 2.5) and ``clip_cosine``, as far as
        features, reference and texts allow; ``left_out``, the others, with the reasons; ``confidence``, standard deviations by
        metric and where they are from; counts, protocol, sources, how the samples were made, notes.
    Raises:
        CheckpointError: the features cannot be had.
        ConfigError: options out of range.
        DataError: pictures that cannot be read, or fewer than two.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    check_names(protocol.crop, protocol.interpolation)
    for option, value in (
        ("batch_size", batch_size),
        ("limit", limit),
        ("image_size", image_size),
        ("sample_size", sample_size),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is 1 or more, got {value}")
    if bootstrap < 0 or bootstrap == 1:
        raise ConfigError(f"bootstrap is 0 (none), or 2 resamples or more; got {bootstrap}")
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
    reference = as_reference(reference)
    places = evenly_spaced(len(samples), limit)
    own = work.collect(samples, "samples", places=places, size=sample_size, protocol=protocol)
    theirs: FeatureSet | None = None
    if reference.images is not None:
        size = image_size or sample_size or first_size(samples, places)
        if isinstance(size, tuple) and size[0] == size[1]:
            size = size[0]
        theirs = work.collect(reference.images, "reference", size=size, protocol=protocol)
    for what, features_of, spec in (
        ("samples", own, samples.spec),
        ("reference", theirs, reference.described.get("spec")),
    ):
        if features_of is not None and len(features_of) < 2:
            raise DataError(f"{what} {spec}: a distance takes two pictures or more, got {len(features_of)}")
    findings = measure_sets(own, theirs, reference, protocol, extractor.metric, bootstrap=bootstrap)
    fit = TextFit(reason="not asked for")
    if clip_score:
        unread = set(own.skipped)
        readable = [place for place in places if samples.name(place) not in unread]
        fit = measure_text_fit(samples, readable, work, protocol, size=sample_size, download=download)
    _add_text_fit(findings, fit, len(own))
    skipped = {"samples": own.skipped, "reference": () if theirs is None else theirs.skipped}
    made = {"sampling": samples.settings} if isinstance(samples, Samples) and samples.settings else {}
    return {
        "kind": "generation",
        **findings.numbers,
        "confidence": findings.confidence,
        "metric": extractor.metric,
        "samples": {"spec": samples.spec, "size": len(own), "listing_hash": samples.listing_hash(), "limit": limit}
        | ({} if sample_size is None else {"cropped_to": sample_size}),
        **made,
        "reference": reference.described | ({} if theirs is None else {"images": len(theirs)}),
        "skipped": {name: {"count": len(names), "names": list(names[:100])} for name, names in skipped.items()},
        "protocol": dataclasses.asdict(protocol),
        "features": found.describe(),
        **({"clip": fit.described} if fit.described else {}),
        "left_out": findings.left_out,
        "notes": [*found.notes, *findings.notes],
        "processes": 1 if accelerator is None else accelerator.num_processes,
        "batch_size": batch_size,
        **describe_run(device, found.packages),
        "seconds": time.perf_counter() - started,
    }


def _add_text_fit(findings: Findings, fit: TextFit, count: int) -> None:
    if fit.score is None or fit.cosine is None:
        findings.left_out["clip_score"] = fit.reason
        return
    measured = fit.described["images"]
    for name, estimate in (("clip_score", fit.score), ("clip_cosine", fit.cosine)):
        findings.add(name, estimate.value, estimate.std, f"standard error over {measured} images")
    if measured < count:
        findings.notes.append(f"{count - measured} of {count} samples have no text and do not count in clip_score")
