"""Measuring a tokenizer by its reconstructions, over a data set, under a named protocol."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vistok.data import ImageSource, collate
from vistok.data.dataset import ImageDataset
from vistok.data.transforms import to_uint8
from vistok.errors import CheckpointError, DataError, MissingExtraError
from vistok.metrics.codebook import CodebookUsage
from vistok.metrics.features import FeatureExtractor, load_features
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.pixel import psnr, ssim
from vistok.metrics.protocols import DEFAULT, Protocol, get_protocol
from vistok.report.table import text_table

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vistok.models.base import Tokenizer

_LISTED = 20
# Fewer images than features leave the covariance singular, and the distance far too small or large.
_FEW_IMAGES = 10_000


class _Share:
    """What one process measures; merging shares gives the same numbers as one process."""

    def __init__(self, tokenizer: Tokenizer, extractor: FeatureExtractor | None, lpips: Any) -> None:
        self.tokenizer, self.extractor, self.lpips = tokenizer, extractor, lpips
        self.rows: dict[int, dict[str, float]] = {}
        self.usage = None if tokenizer.continuous else CodebookUsage(tokenizer.codebook_size)
        dims = extractor.dims if extractor else 0
        self.real, self.fake = FeatureStats.empty(dims), FeatureStats.empty(dims)
        self.seconds = 0.0

    def add(self, batch: dict[str, Any], *, length: int | None, eight_bit: bool, condition: Any) -> None:
        """Measure one batch."""
        images = batch["image"].to(self.tokenizer.device)
        start = time.perf_counter()
        tokens = self.tokenizer.encode(images)
        if length is not None:
            tokens = tokens.truncate(length)
        decoded = self.tokenizer.decode(tokens, condition=condition)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        self.seconds += time.perf_counter() - start
        if eight_bit:
            images, decoded = (to_uint8(x).float() / 255.0 for x in (images, decoded))
        values = {"psnr": psnr(decoded, images), "ssim": ssim(decoded, images)}
        if self.lpips is not None:
            with torch.no_grad():
                values["lpips"] = self.lpips(decoded, images)
        values["tokens"], values["bits"] = tokens.lengths.double(), tokens.bits()
        for row, index in enumerate(batch["index"].tolist()):
            self.rows[index] = {name: float(value[row]) for name, value in values.items()}
        if self.usage is not None:
            self.usage.update(tokens.ids[tokens.mask()])
        if self.extractor is not None:
            self.real.update(self.extractor(images))
            self.fake.update(self.extractor(decoded))



def evaluate_reconstruction(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    protocol: str | Protocol = DEFAULT,
    batch_size: int = 16,
    limit: int | None = None,
    length: int | None = None,
    captions: Sequence[str] | str | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    lpips: bool = True,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode and decode every picture, and measure.

    Args:
        tokenizer: on its device, in evaluation mode.
        source: pictures.
        protocol: a name or a protocol of one's own; recorded whole.
        batch_size: images at a time and process.
        limit: only the first so many pictures.
        length: decode this many leading tokens (ordered tokenizers).
        captions: for a tokenizer that decodes with text: one text for all, or "{class}" in it for the class
            name; None uses "A photo of a {class}." where there are classes, else the source's captions.
        features: overrides the protocol's network, and is recorded.
        weights: a file of Inception weights.
        lpips: whether to measure LPIPS, where its weights can be had.
        accelerator: of several processes, each of which takes every n-th picture.
        progress: show a bar on the main process.
    Returns:
        A JSON-able dict: metrics, counts, protocol, hashes, versions, seconds. ``fid`` is only ever
        measured with Inception; with the stand-in it is called ``fd_lite0``.
    """
    began = time.perf_counter()
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    reasons: dict[str, str] = {}
    extractor = load_features(features or protocol.features, weights=weights, device=tokenizer.device)
    if extractor is None:
        reasons["fid"] = "no feature network was asked for, or none has weights on this machine"
    perceptual = _load_lpips(tokenizer, reasons) if lpips else None
    data = ImageDataset(
        source, image_size=tokenizer.image_size, crop=protocol.crop, interpolation=protocol.interpolation, max_skipped=0
    )
    count = min(len(source), limit or len(source))
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = _Share(tokenizer, extractor, perceptual)
    texts = _Texts(tokenizer, source, captions)
    skipped: dict[str, str] = {}
    mine = list(range(rank, count, world))
    with tqdm(total=count, desc="measuring", unit="image", disable=not (progress and rank == 0), dynamic_ncols=True) as bar:
        for start in range(0, len(mine), batch_size):
            items = []
            for index in mine[start : start + batch_size]:
                try:
                    items.append(data[index])
                except DataError as error:
                    skipped[source.name(index)] = str(error)
            if items:
                batch = collate(items)
                share.add(batch, length=length, eight_bit=protocol.eight_bit, condition=texts(batch))
            bar.update(min(batch_size * world, count - bar.n))
    _merge(share, skipped, accelerator)
    if len(share.rows) < 2:
        raise DataError(f"{len(share.rows)} of {count} pictures of {source.spec} could be read; measuring needs two")
    metrics = _summary(share, tokenizer, reasons)
    return {
        "model": tokenizer.name or tokenizer.family,
        "family": tokenizer.family,
        "weight_hash": tokenizer.weight_hash(),
        "protocol": protocol.to_dict() | ({"features": features} if features else {}),
        "data": {
            "spec": source.spec,
            "listing_hash": source.listing_hash(),
            "images": len(share.rows),
            "limit": limit,
            "skipped": len(skipped),
            "skipped_names": sorted(skipped)[:_LISTED],
        },
        "length": length,
        "metrics": metrics,
        "missing": reasons,
        "features": {"name": extractor.name, "weights": extractor.weights} if extractor else None,
        "images_per_second": len(share.rows) / max(share.seconds, 1e-9) * world,
        "seconds": time.perf_counter() - began,
        **_circumstances(tokenizer, world, batch_size),
    }


class _Texts:
    """Captions of a batch as the condition of a text-aware tokenizer; None for others."""

    def __init__(self, tokenizer: Tokenizer, source: ImageSource, captions: Sequence[str] | str | None) -> None:
        self.network = None
        if tokenizer.conditional:
            from vistok.models.text import ClipTextFeatures

            self.network = ClipTextFeatures().to(tokenizer.device)
        self.source, self.captions = source, captions

    def __call__(self, batch: dict[str, Any]) -> Tensor | None:
        if self.network is None:
            return None
        template = self.captions
        if template is None and self.source.classes:
            template = "A photo of a {class}."
        texts = []
        for row, label in enumerate(batch["label"].tolist()):
            name = self.source.classes[label] if label >= 0 else ""
            texts.append(batch["caption"][row] if template is None else str(template).replace("{class}", name))
        return self.network(texts)


def _load_lpips(tokenizer: Tokenizer, reasons: dict[str, str]) -> Any:
    from vistok.losses.perceptual import LPIPS

    try:
        return LPIPS.pretrained().to(tokenizer.device)
    except (CheckpointError, MissingExtraError) as error:
        reasons["lpips"] = str(error)
        return None


def _merge(share: _Share, skipped: dict[str, str], accelerator: Accelerator | None) -> None:
    """Bring the shares of all processes together, on every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    state = {
        "rows": share.rows,
        "counts": None if share.usage is None else share.usage.counts,
        "stats": [(s.count, s.mean, s.scatter) for s in (share.real, share.fake)],
        "seconds": share.seconds,
        "skipped": dict(skipped),
    }
    parts = gather_object([state])
    share.rows = {index: row for part in parts for index, row in part["rows"].items()}
    if share.usage is not None:
        share.usage.counts = torch.stack([part["counts"] for part in parts]).sum(dim=0)
    for number, name in enumerate(("real", "fake")):
        stats = FeatureStats.empty(len(getattr(share, name).mean))
        for part in parts:
            stats.merge(FeatureStats(*part["stats"][number]))
        setattr(share, name, stats)
    share.seconds = max(part["seconds"] for part in parts)
    for part in parts:
        skipped.update(part["skipped"])


def _summary(share: _Share, tokenizer: Tokenizer, reasons: dict[str, str]) -> dict[str, float]:
    """Means over pictures in their order, so that the sum does not depend on the number of processes."""
    rows = [share.rows[index] for index in sorted(share.rows)]
    finite = {name: [row[name] for row in rows] for name in rows[0]}
    metrics = {name: float(torch.tensor(values, dtype=torch.float64).mean()) for name, values in finite.items()}
    pixels = tokenizer.image_size**2
    metrics["bits_per_pixel"] = metrics["bits"] / pixels
    if share.extractor is not None:
        metrics[share.extractor.metric] = frechet_distance(share.real, share.fake)
        if len(rows) < _FEW_IMAGES:
            reasons["note"] = (
                f"{share.extractor.metric} is biased by the number of images: {len(rows)} are few, compare only with equal numbers"
            )
    if share.usage is not None:
        metrics |= {f"codebook_{name}": value for name, value in share.usage.compute().items()}
    return metrics


def _circumstances(tokenizer: Tokenizer, world: int, batch_size: int) -> dict[str, Any]:
    import numpy
    import PIL
    import torchvision

    import vistok

    return {
        "device": str(tokenizer.device),
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "processes": world,
        "batch_size": batch_size,
        "versions": {
            "vistok": vistok.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
        "command": " ".join(Path(part).name if number == 0 else part for number, part in enumerate(sys.argv)),
    }


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Results as a text table, one column a result."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    header = ["metric", *(f"{result['model']}" + (f" @{result['length']}" if result["length"] else "") for result in results)]
    rows = [[name, *(_number(result["metrics"].get(name)) for result in results)] for name in names]
    rows.append(["images", *(str(result["data"]["images"]) for result in results)])
    rows.append(["images/s", *(f"{result['images_per_second']:.1f}" for result in results)])
    return text_table(header, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def write_json(result: Any, path: str | Path) -> None:
    """Write a result, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
