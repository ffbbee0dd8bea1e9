"""All that the features of two sets say, each number with its confidence, or why it is not measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vistok.metrics.feature_set import FeatureSet
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.protocols import Protocol
from vistok.metrics.samples import Reference
from vistok.metrics.set_metrics import (
    ball_hits,
    bootstrap_std,
    clip_mmd,
    inception_score,
    kernel_distance,
    mean_of,
    precision_recall,
)

_KID_SUBSET = 1000
_COVERAGE_NEIGHBOURS = 5
# Below so many images, numbers depend on the count by more than papers differ.
_FEW, _FEW_FOR_SCORE, _FEW_FOR_NEIGHBOURS = 10_000, 5_000, 5_000
_NEIGHBOUR_METRICS = ("precision", "recall", "density", "coverage")


@dataclass
class Findings:
    """What was measured.

    Attributes:
        numbers: by metric.
        confidence: of metrics, ``std`` and where it is ``from``.
        left_out: metrics that were not measured, and the reasons.
        notes: what is to be said about the numbers.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, std: float | None = None, source: str = "") -> None:
        """A number; its deviation only where there is one."""
        self.numbers[name] = value
        if std is not None and math.isfinite(std):
            self.confidence[name] = {"std": std, "from": source}


def measure_sets(
    own: FeatureSet,
    theirs: FeatureSet | None,
    reference: Reference,
    protocol: Protocol,
    metric: str,
    *,
    bootstrap: int = 0,
) -> Findings:
    """Compare samples with a reference.

    Args:
        own: features of the samples.
        theirs: of the reference's images, where it has some.
        reference: its statistics, if any, come before those of its images.
        protocol: splits and neighbours.
        metric: what the Fréchet distance is called.
        bootstrap: resamples of the samples; 0 for none.
    """
    found = Findings()
    suffix = "" if metric == "fid" else "_" + own.features
    stats = reference.stats or theirs.stats()
    counts = {"samples": len(own), "images of the reference": stats.n}
    found.notes += [*_departures(len(own), protocol, reference), *count_notes(counts, own.pooled.shape[1])]

    def distance(layer: str, to: FeatureStats) -> Callable[[torch.Tensor], float]:
        def of(chosen: torch.Tensor) -> float:
            return frechet_distance(
                FeatureSet({layer: own.layers[layer][chosen]}, features=own.features).stats(layer), to
            )

        return of

    def add_resampled(name: str, function: Callable[[torch.Tensor], float]) -> None:
        std = bootstrap_std(function, len(own), resamples=bootstrap) if bootstrap else None
        found.add(name, function(torch.arange(len(own))), std, f"bootstrap of the samples, {bootstrap} resamples")

    add_resampled(metric, distance("pooled", stats))
    if "spatial" not in own.layers:
        found.left_out["sfid"] = f"the features {own.features} have no map of places"
    elif reference.spatial is not None:
        add_resampled("sfid", distance("spatial", reference.spatial))
    elif reference.stats is None and theirs is not None:
        add_resampled("sfid", distance("spatial", theirs.stats("spatial")))
    else:
        found.left_out["sfid"] = "the reference's statistics have none of places (mu_s, sigma_s)"
    _add_score(found, own, protocol, "is" if metric == "fid" else "score" + suffix)
    if theirs is None:
        reason = "the reference is statistics, and this compares images with images"
        found.left_out |= {name + suffix: reason for name in ("kid", *_NEIGHBOUR_METRICS)} | {"cmmd": reason}
        return found
    _add_kernel_distance(found, own, theirs, "kid" + suffix)
    _add_neighbours(found, own, theirs, protocol, suffix)
    if metric == "fd_clip":
        add_resampled("cmmd", lambda chosen: clip_mmd(own.pooled[chosen], theirs.pooled))
    else:
        found.left_out["cmmd"] = "it is of CLIP's features (--features clip)"
    return found


def _add_score(found: Findings, own: FeatureSet, protocol: Protocol, name: str) -> None:
    if "logits" not in own.layers:
        found.left_out[name] = f"the features {own.features} have no classes"
        return
    splits = min(protocol.is_splits, len(own))
    score = inception_score(own.layers["logits"], splits=splits, shuffle=protocol.is_shuffle)
    found.add(name, score.value, score.std, f"{splits} splits")
    found.notes += score_notes(len(own))


def _add_kernel_distance(found: Findings, own: FeatureSet, theirs: FeatureSet, name: str) -> None:
    subset = min(_KID_SUBSET, len(own), len(theirs))
    if subset < 2:
        found.left_out[name] = "a kernel distance takes two images or more of each set"
        return
    distance = kernel_distance(own.pooled, theirs.pooled, subset_size=subset)
    if subset < _KID_SUBSET:  # all draws of one of the sets are the same: their spread says nothing
        found.add(name, distance.value)
        found.notes.append(
            f"{name} of fewer than {_KID_SUBSET} images has no deviation: its subsets would be the whole set"
        )
    else:
        found.add(name, distance.value, distance.std, f"100 subsets of {subset}")


def _add_neighbours(found: Findings, own: FeatureSet, theirs: FeatureSet, protocol: Protocol, suffix: str) -> None:
    pictures = theirs.pooled
    if protocol.neighbour_images and protocol.neighbour_images < len(pictures):
        chosen = np.random.RandomState(0).choice(len(pictures), protocol.neighbour_images, replace=False)
        pictures = pictures[torch.from_numpy(np.sort(chosen))]
    few = min(len(own), len(pictures))
    if few <= max(protocol.neighbours, _COVERAGE_NEIGHBOURS):
        reason = f"{len(own)} samples and {len(pictures)} reference images are too few for neighbours"
        found.left_out |= {name + suffix: reason for name in _NEIGHBOUR_METRICS}
        return
    precision, recall = precision_recall(own.pooled, pictures, neighbours=protocol.neighbours)
    hits, covered = ball_hits(own.pooled, pictures, neighbours=_COVERAGE_NEIGHBOURS)
    # Precision is a share of the samples, recall and coverage are of the reference's images.
    for name, value, count in (
        ("precision", precision, len(own)),
        ("recall", recall, len(pictures)),
        ("coverage", float(covered.double().mean()), len(pictures)),
    ):
        share = (value * count + 1) / (count + 2)  # of none or all of a few images is not certain
        std = (share * (1 - share) / count) ** 0.5
        found.add(name + suffix, value, std, f"a share of {count} images")
    density = mean_of(hits / _COVERAGE_NEIGHBOURS)
    found.add("density" + suffix, density.value, density.std, f"standard error over {len(own)} images")
    if few < _FEW_FOR_NEIGHBOURS:
        found.notes.append(
            f"{few} images: precision, recall, density and coverage depend on the number; compare sets of the same size only"
        )


def _departures(count: int, protocol: Protocol, reference: Reference) -> list[str]:
    """What the protocol says otherwise."""
    notes = []
    if protocol.num_images and count != protocol.num_images:
        notes.append(f"{count} samples instead of the protocol's {protocol.num_images}")
    made = reference.described.get("made") or {}
    if made.get("resize", protocol.resize) != protocol.resize:
        notes.append(
            f"the reference was made by the resize {made['resize']}, and the samples are fed by {protocol.resize}: "
            "take a reference and a protocol of one kind"
        )
    digest = str(reference.described.get("file_hash", ""))
    if protocol.reference_hash and not digest.startswith(protocol.reference_hash):
        notes.append(
            f"the reference {digest or reference.described.get('spec')} instead of {protocol.reference} "
            f"({protocol.reference_hash}...)"
        )
    return notes


def count_notes(counts: dict[str, int | None], dims: int) -> list[str]:
    """Warnings about numbers of images that distances are biased by."""
    notes = []
    for what, count in counts.items():
        if count is not None and count <= dims:
            notes.append(f"{count} {what} are too few for {dims} features: the distance is far too high or low")
        elif count is not None and count < _FEW:
            notes.append(
                f"{count} {what}: the Fréchet distance falls with the number of images; compare it with sets of the same size only"
            )
    return notes


def score_notes(count: int) -> list[str]:
    """A warning about the inception score of few images."""
    if count >= _FEW_FOR_SCORE:
        return []
    return [f"{count} images make an inception score that is too low; papers take 50,000"]
