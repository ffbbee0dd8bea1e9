"""The network of FID."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from vistok.errors import CheckpointError, require
from vistok.hub import read_state
from vistok.metrics.extractor import FeatureExtractor
from vistok.metrics.resize import RESIZES

_SIDE = 299
_SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch, as ADM's sFID takes them
_BEFORE = (
    "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2 Mixed_5b Mixed_5c Mixed_5d "
    "Mixed_6a Mixed_6b Mixed_6c"
).split()
_AFTER = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")


class InceptionFeatures(FeatureExtractor):
    """InceptionV3 of 2015-12-05, pooled features; with ``tf1_bilinear`` exactly as torch-fidelity computes them.

    ``every`` also gives ``spatial`` [B, 7 * 17 * 17] for sFID, and ``logits`` [B, 1008], without the last bias, for the
    inception score. Images are rounded to 8 bits, unless ``eight_bit`` is False.

    Args:
        weights: a file of torch-fidelity or pytorch-fid.
        resize: a name of ``vistok.metrics.resize.RESIZES``.
    Raises:
        CheckpointError: unreadable, or another network.
        MissingExtraError: torch-fidelity is not installed.
    """

    name, metric, dims, package = "inception", "fid", 2048, "torch-fidelity"
    layers = ("spatial", "logits")

    def __init__(self, weights: Path, resize: str = "tf1_bilinear") -> None:
        super().__init__(weights)
        module = require("torch_fidelity.feature_extractor_inceptionv3", extra="eval", purpose="the FID network")
        # torch-fidelity unpickles whatever it is given; it is given what was read as plain tensors.
        checked = io.BytesIO()
        torch.save(read_state(weights), checked)
        checked.seek(0)
        try:
            self.network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(self.dims)], feature_extractor_weights_path=checked
            )
        except RuntimeError as error:  # what load_state_dict raises
            raise CheckpointError(f"{weights} does not hold the Inception network of FID: {error}") from error
        self.resize = resize
        self.train(False)

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        pixels = images * 255.0
        if self.eight_bit:
            pixels = pixels.round().clamp(0.0, 255.0)
        x = RESIZES[self.resize](pixels, _SIDE)
        # pytorch-fid's range is exactly [-1, 1], the others' is the published graph's.
        x = x / 127.5 - 1 if self.resize == "bilinear" else (x - 128) / 128
        found = {}
        for name in _BEFORE:
            x = getattr(self.network, name)(x)
        if "spatial" in layers:
            found["spatial"] = self.network.Mixed_6d.branch1x1(x)[:, :_SPATIAL_CHANNELS].flatten(1)
        for name in _AFTER:
            x = getattr(self.network, name)(x)
        found["pooled"] = x.flatten(1)
        if "logits" in layers:
            found["logits"] = found["pooled"] @ self.network.fc.weight.T
        return found
