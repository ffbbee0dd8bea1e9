"""``vistok eval self-check``: what must hold of every evaluator, tried on this machine with its own networks."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from vistok.data.sources import BaseSource, ImageSource, open_source
from vistok.errors import CheckpointError
from vistok.metrics.feature_set import FeatureSet, FeatureWork
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Features, gather_instruments
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.set_metrics import precision_recall

_SIZE = 64
_SHARE = 8  # images that a process takes at a time


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
    *,
    protocol: str = "offline-lite0",
    features: Features = "auto",
    weights: str | None = None,
    images: int = 48,
    processes: int = 2,
) -> Iterator[tuple[str, bool, str]]:
    """What is checked, whether it holds, and the figure.

    Args:
        protocol: a name of ``list_protocols()``.
        features, weights: see ``evaluate_generation``.
        images: of the embedded photographs and emoji, each.
        processes: that are started, and must find what one does; 1 leaves this out.
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
    yield "statistics of two shares, merged, are those of the whole", close(apart, two, 1e-8), f"{abs(apart - two):.2e}"
    if processes > 1:
        alike, figure = _together(
            FeatureWork(extractor, batch_size=_SHARE, chunk=_SHARE, progress=False),
            _Picked(photos, places),
            chosen,
            processes,
        )
        yield f"{processes} processes find what one does", alike, figure
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


def _together(work: FeatureWork, source: ImageSource, protocol: Protocol, processes: int) -> tuple[bool, str]:
    """Whether several processes collect the features that one does, and how far they are from it."""
    alone = work.collect(source, "self-check", size=_SIZE, protocol=protocol).pooled
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        try:
            torch.multiprocessing.spawn(_take_part, (processes, port, work, source, protocol, path), nprocs=processes)
        except (torch.multiprocessing.ProcessException, OSError) as error:
            return False, str(error).strip().splitlines()[-1]
        together = torch.from_numpy(np.load(path))
    if together.shape != alone.shape:
        return False, f"{len(together)} features instead of {len(alone)}"
    largest = float((together - alone).abs().max())
    return largest <= 1e-5 * float(alone.abs().max()), f"{largest:.2e}"


def _take_part(
    rank: int, processes: int, port: int, work: FeatureWork, source: ImageSource, protocol: Protocol, path: Path
) -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true"})
    torch.set_num_threads(1)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    if accelerator.num_processes != processes:
        raise RuntimeError(f"{accelerator.num_processes} processes see each other instead of {processes}")
    work = dataclasses.replace(work, accelerator=accelerator)
    pooled = work.collect(source, "self-check", size=_SIZE, protocol=protocol).pooled
    if accelerator.is_main_process:
        np.save(path, pooled.numpy())
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run_self_check(say: Callable[[str], None], **options: Any) -> dict[str, Any]:
    """Say every check as it is done; ``ok`` tells whether all hold."""
    checks = []
    for what, holds, figure in self_check(**options):
        checks.append({"check": what, "holds": holds, "figure": figure})
        say(f"{'ok  ' if holds else 'FAIL'}  {what}: {figure}")
    return {"checks": checks, "ok": all(check["holds"] for check in checks)}
