"""``vistok eval self-check``: what must hold of every evaluator, tried on this machine with its own networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vistok.data.sources import BaseSource, ImageSource, open_source
from vistok.errors import CheckpointError
from vistok.metrics.feature_set import FeatureSet, FeatureWork
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Features, gather_instruments
from vistok.metrics.protocols import get_protocol
from vistok.metrics.set_metrics import precision_recall

_SIZE = 64


class _Picked(BaseSource):
    """Some pictures of a source, in an order."""

    def __init__(self, source: ImageSource, places: list[int]) -> None:
        super().__init__(f"{source.spec} ({len(places)} of them)", source.classes)
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Any:
        return self.source.image(self.places[index])

    def label(self, index: int) -> int:
        return self.source.label(self.places[index])

    def name(self, index: int) -> str:
        return self.source.name(self.places[index])


def self_check(
    *, protocol: str = "offline-lite0", features: Features = "auto", weights: str | None = None, images: int = 48
) -> Iterator[tuple[str, bool, str]]:
    """What is checked, whether it holds, and the figure.

    Args:
        protocol: a name of ``list_protocols()``.
        features, weights: see ``evaluate_generation``.
        images: of the embedded photographs and emoji, each.
    Raises:
        CheckpointError: the features cannot be had.
    """
    chosen = get_protocol(protocol)
    device = torch.device("cpu")
    found = gather_instruments(
        chosen, features=features, weights=weights, lpips=False, download=True, accelerator=None, device=device
    )
    extractor = found.extractor
    if extractor is None:
        raise CheckpointError(f"there are no features to check: {found.left_out['fid']}")
    photos, emoji = (open_source(spec, split="all") for spec in ("photos:", "emoji:"))
    places = list(range(images))

    def collect(source: ImageSource, order: list[int], **options: Any) -> FeatureSet:
        work = FeatureWork(extractor, batch_size=16, progress=False, **options)
        return work.collect(_Picked(source, order), "self-check", size=_SIZE, protocol=chosen)

    a, b = collect(photos, places), collect(emoji, places)
    name = extractor.metric

    def close(left: float, right: float, tolerance: float) -> bool:
        return abs(left - right) <= tolerance * max(1.0, abs(left))

    zero = frechet_distance(a.stats(), a.stats())
    yield f"{name} of a set and itself is 0", zero < 1e-6, f"{zero:.2e}"
    apart = frechet_distance(a.stats(), b.stats())
    yield f"{name} of photographs and emoji is not", apart > 1e-3, f"{apart:.4g}"
    back = frechet_distance(b.stats(), a.stats())
    yield "it is the same either way", close(apart, back, 1e-8), f"{abs(apart - back):.2e}"
    turned = frechet_distance(collect(photos, places[::-1]).stats(), b.stats())
    yield "the order of the images changes nothing", close(apart, turned, 1e-4), f"{abs(apart - turned):.2e}"
    parts = [FeatureStats(extractor.dims, features=extractor.name) for _ in range(2)]
    for number, part in enumerate(parts):
        part.update(a.pooled[number::2])
    parts[0].merge(parts[1])
    two = frechet_distance(parts[0], b.stats())
    yield "two processes' statistics are one's", close(apart, two, 1e-8), f"{abs(apart - two):.2e}"
    with tempfile.TemporaryDirectory() as folder:
        kept = [collect(photos, places, cache=Path(folder)) for _ in range(2)]
    same = all(torch.equal(one.pooled, a.pooled) for one in kept)
    yield "features that were kept are the same", same, "bit for bit" if same else "they differ"
    both = precision_recall(a.pooled, a.pooled)
    yield "precision and recall of a set and itself are 1", both == (1.0, 1.0), f"{both[0]:.3f}, {both[1]:.3f}"
    collapsed = a.pooled[:1].repeat(images, 1) + 1e-4 * torch.randn(images, extractor.dims, generator=_generator())
    precision, recall = precision_recall(collapsed, a.pooled)
    yield (
        "one picture over and over is precise and recalls next to nothing",
        precision > 0.9 > 0.2 > recall,
        (f"{precision:.3f}, {recall:.3f}"),
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run_self_check(say: Callable[[str], None], **options: Any) -> dict[str, Any]:
    """Say every check as it is done; ``ok`` tells whether all hold."""
    checks = []
    for what, holds, figure in self_check(**options):
        checks.append({"check": what, "holds": holds, "figure": figure})
        say(f"{'ok  ' if holds else 'FAIL'}  {what}: {figure}")
    return {"checks": checks, "ok": all(check["holds"] for check in checks)}
