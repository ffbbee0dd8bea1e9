"""Aligning inner features with those of a pretrained vision network (REPA, arXiv:2410.06940)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError


def alignment_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine similarity of projected features with a target map, averaged over positions and samples.

    Args:
        projected: [B, h, w, E], inner features after the projection head.
        target: [B, H, W, E], the other network's features; the projected map is resized to H x W
            (bilinear), not the target to it, so that targets can be stored as they come.
    Returns:
        a scalar in [-1, 1]; lower is better.
    Raises:
        VistokError: the two do not belong together.
    """
    if projected.ndim != 4 or target.ndim != 4 or projected.shape[::3] != target.shape[::3]:
        raise VistokError(
            "alignment takes maps of features of one batch and number of channels [B, h, w, E], "
            f"got {list(projected.shape)} and {list(target.shape)}"
        )
    with torch.autocast(projected.device.type, enabled=False):
        grid = projected.float().permute(0, 3, 1, 2)  # [B, E, h, w]
        if grid.shape[2:] != target.shape[1:3]:
            grid = F.interpolate(grid, size=tuple(target.shape[1:3]), mode="bilinear", align_corners=False)
        return -F.cosine_similarity(grid, target.float().permute(0, 3, 1, 2), dim=1).mean()
