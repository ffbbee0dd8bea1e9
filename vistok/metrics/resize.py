"""The ways in which evaluators bring images to the size of a network: the same pixels, other features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vistok.errors import require


def _tf1_bilinear(pixels: Tensor, side: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear``: corners of pixels, not their middles; torch-fidelity and ADM."""
    helpers = require("torch_fidelity.feature_extractor_inceptionv3", extra="eval", purpose="TensorFlow 1's resize")
    return helpers.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(side, side), align_corners=False)


def _bilinear(pixels: Tensor, side: int) -> Tensor:
    """Middles of pixels, no antialias; pytorch-fid."""
    return F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)


def _pil_bicubic(pixels: Tensor, side: int) -> Tensor:
    """Pillow's bicubic with antialias, channel by channel in float, clipped but not rounded; clean-fid."""
    planes = pixels.flatten(0, 1).float().cpu().numpy()
    resized = [np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)) for plane in planes]
    stacked = torch.from_numpy(np.stack(resized)).unflatten(0, pixels.shape[:2])
    return stacked.to(pixels.device).clamp(0.0, 255.0)


# Pixels [B, 3, H, W] from 0 to 255, as floats, and the side -> such pixels [B, 3, side, side].
RESIZES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1_bilinear": _tf1_bilinear,
    "bilinear": _bilinear,
    "pil_bicubic": _pil_bicubic,
}
