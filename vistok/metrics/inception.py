"""The network of FID, and the ways in which evaluators bring images to its size."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vistok.errors import CheckpointError, require
from vistok.hub import read_state
from vistok.metrics.extractor import FeatureExtractor

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
    inception score. Images are rounded to 8 bits.

    Args:
        weights: a file of torch-fidelity or pytorch-fid.
        resize: a name of ``RESIZES``.
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
        pixels = (images * 255.0).round().clamp(0.0, 255.0)
        x = RESIZES[self.resize](pixels)
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


def _tf1_bilinear(pixels: Tensor) -> Tensor:
    """TensorFlow 1's ``resize_bilinear``: corners of pixels, not their middles; torch-fidelity and ADM."""
    helpers = require("torch_fidelity.feature_extractor_inceptionv3", extra="eval", purpose="the FID network")
    resized = helpers.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(_SIDE, _SIDE), align_corners=False)
    return (resized - 128) / 128


def _bilinear(pixels: Tensor) -> Tensor:
    """Middles of pixels, no antialias; pytorch-fid, whose range is exactly [-1, 1]."""
    return 2 * F.interpolate(pixels / 255, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False) - 1


def _pil_bicubic(pixels: Tensor) -> Tensor:
    """Pillow's bicubic with antialias, channel by channel in float, clipped but not rounded; clean-fid."""
    planes = pixels.flatten(0, 1).float().cpu().numpy()
    size = (_SIDE, _SIDE)
    resized = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes]
    stacked = torch.from_numpy(np.stack(resized)).unflatten(0, pixels.shape[:2])
    return (stacked.to(pixels.device).clamp(0.0, 255.0) - 128) / 128


RESIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "tf1_bilinear": _tf1_bilinear,
    "bilinear": _bilinear,
    "pil_bicubic": _pil_bicubic,
}
