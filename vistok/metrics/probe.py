"""Linear probes: how much of a class can be read off features by a linear map.

Features are standardised with the training set's mean and deviation; the map is a logistic regression
with a little weight decay, fitted by L-BFGS from zero, so that a result has no seed.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data import ImageDataset, collate, open_source
from vistok.data.sources import ImageSource
from vistok.errors import VistokError
from vistok.metrics.result import describe_run
from vistok.models.base import Tokenizer

_NORM_EPS = 1e-6
_MAX_STEPS = 200
_CHUNK = 65536  # rows of features whose logits are held at a time


def fit_linear_probe(features: Tensor, labels: Tensor, *, num_classes: int, weight_decay: float = 1e-3) -> LinearProbe:
    """Fit a probe.

    Args:
        features: float [M, D].
        labels: int64 [M] in [0, num_classes).
        num_classes: K.
        weight_decay: of half the squared weights, beside the mean cross-entropy.
    Raises:
        VistokError: nothing to fit, or features that are not finite.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise VistokError(
            f"a probe is fitted to features [M, D] and labels [M], got {list(features.shape)} and {list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise VistokError(f"labels are from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    features = features.detach().float()
    if not features.isfinite().all():
        raise VistokError("a probe cannot be fitted: some features are not finite")
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    probe = LinearProbe(mean, 1.0 / (deviation + _NORM_EPS), features.new_zeros(num_classes, features.shape[1] + 1))
    weight = probe.weight.requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=_MAX_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = 0.5 * weight_decay * weight[:, :-1].square().sum()
        total.backward()
        for start in range(0, len(labels), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = F.cross_entropy(probe.logits(features[rows]), labels[rows], reduction="sum") / len(labels)
            part.backward()
            total = total + part.detach()
        return total.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    probe.weight = weight.detach()
    return probe


class LinearProbe:
    """A linear map from standardised features to classes; see ``fit_linear_probe``.

    Attributes:
        mean, scale: [D], what is taken off, and what the rest is multiplied by.
        weight: [K, D + 1]; the last column is the bias.
    """

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor) -> None:
        self.mean, self.scale, self.weight = mean, scale, weight

    def logits(self, features: Tensor) -> Tensor:
        """[M, D] -> [M, K]."""
        return F.linear((features.float() - self.mean) * self.scale, self.weight[:, :-1], self.weight[:, -1])

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of right answers, 0 to 1."""
        right = [
            (self.logits(rows).argmax(dim=1) == wanted).sum()
            for rows, wanted in zip(features.split(_CHUNK), labels.split(_CHUNK), strict=True)
        ]
        return float(torch.stack(right).sum()) / len(labels)


@torch.no_grad()
def extract_features(
    model: Tokenizer,
    source: ImageSource,
    *,
    crop: str,
    interpolation: str,
    batch_size: int,
    limit: int | None,
    part: str,
) -> tuple[Tensor, Tensor]:
    """Features [M, D] and labels [M] of a source's labelled pictures, on the model's device."""
    data = ImageDataset(source, image_size=model.image_size, crop=crop, interpolation=interpolation)
    count = len(data) if limit is None else min(limit, len(data))
    # Evenly spaced, since sources are often sorted by class.
    indices = [index * len(data) // count for index in range(count)]
    features, labels = [], []
    for start in range(0, count, batch_size):
        batch = collate([data[index] for index in indices[start : start + batch_size]])
        known = batch["label"] >= 0
        if known.any():
            features.append(model.features(batch["image"][known].to(model.device), part=part).float())
            labels.append(batch["label"][known].to(model.device))
    if not labels:
        raise VistokError(f"the source {source.spec!r} has no labels, which a probe needs")
    return torch.cat(features), torch.cat(labels)


def evaluate_probe(
    model: Tokenizer,
    spec: str,
    *,
    part: str = "encoder",
    crop: str = "arc",
    interpolation: str = "bicubic",
    batch_size: int = 32,
    limit: int | None = None,
    weight_decay: float = 1e-3,
) -> dict[str, Any]:
    """Fit a probe on a source's ``train`` split and count its right answers on ``val``.

    Args:
        model: a tokenizer with ``features`` (GigaTok).
        spec: a labelled source with both splits.
        part: of the model, see ``GigaTok.features``.
        crop, interpolation: of all pictures; nothing is augmented.
        batch_size, limit: pictures at a time, and at most of each split, evenly chosen.
        weight_decay: of the probe.
    Returns:
        a result for ``save_result``: ``accuracy`` and ``accuracy_train`` from 0 to 1, ``chance``, counts, settings.
    Raises:
        VistokError: a model without features, or a source without labels.
    """
    if not hasattr(model, "features"):
        raise VistokError(f"{model.name or model.family} has no features to probe; a GigaTok has")
    start = time.perf_counter()
    options = {
        "crop": crop, "interpolation": interpolation, "batch_size": batch_size, "limit": limit, "part": part,
    }  # fmt: skip
    splits = {split: open_source(spec, split=split) for split in ("train", "val")}
    sets = {split: extract_features(model, source, **options) for split, source in splits.items()}
    classes = max(splits["train"].num_classes, 1 + max(int(labels.max()) for _, labels in sets.values()))
    probe = fit_linear_probe(*sets["train"], num_classes=classes, weight_decay=weight_decay)
    most_frequent = torch.bincount(sets["val"][1]).max()
    return {
        "model": model.name or model.family,
        "weight_hash": model.weight_hash(),
        "data": {
            "spec": spec,
            "classes": classes,
            **{split: {"images": len(sets[split][1]), "listing": splits[split].listing_hash()} for split in splits},
        },
        "probe": options | {"weight_decay": weight_decay, "head": "standardised, logistic regression by L-BFGS"},
        "accuracy": probe.accuracy(*sets["val"]),
        "accuracy_train": probe.accuracy(*sets["train"]),
        "chance": float(most_frequent) / len(sets["val"][1]),
        "seconds": round(time.perf_counter() - start, 2),
        "run": describe_run(model.device),
    }
