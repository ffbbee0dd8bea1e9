"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv:2006.10738)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TRANSLATION = 0.125
_CUTOUT = 0.2


def diff_augment(images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Change colours, move, and cut a hole: drawn once, the same for the whole batch.

    The same for all, so that no image's gradient depends on the others, and real and reconstructed
    images of a batch are seen alike.

    Args:
        images: [B, 3, H, W] in [0, 1].
        generator: CPU generator of the draws.
    Returns:
        images [B, 3, H, W]; values may leave [0, 1], places outside the picture are mid-grey.
    """
    height, width = images.shape[-2:]
    draws = torch.rand(7, generator=generator).tolist()
    x = images - 0.5  # so that zeros, which padding and holes are, are mid-grey
    x = x + (draws[0] - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (2.0 * draws[1]) + mean  # saturation
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * (draws[2] + 0.5) + mean  # contrast
    down, right = (
        round((2.0 * draw - 1.0) * _TRANSLATION * size) for draw, size in ((draws[3], height), (draws[4], width))
    )
    x = F.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    x = x[..., top : top + height, left : left + width]
    side_y, side_x = max(1, round(_CUTOUT * height)), max(1, round(_CUTOUT * width))
    top, left = int(draws[5] * (height - side_y + 1)), int(draws[6] * (width - side_x + 1))
    keep = x.new_ones(1, 1, height, width)
    keep[..., top : top + side_y, left : left + side_x] = 0.0
    return x * keep + 0.5
