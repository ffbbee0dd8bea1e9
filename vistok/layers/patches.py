"""Maps as sequences of patches; the vector of a patch is in the order (row, column, channel)."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, h*w, p*p*C], patches row by row."""
    p = patch_size
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, h, p, w, p]
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(x: Tensor, patch_size: int, grid_size: tuple[int, int]) -> Tensor:
    """The way back: [B, h*w, p*p*C] -> [B, C, H, W]."""
    p = patch_size
    x = x.unflatten(1, grid_size).unflatten(3, (p, p, -1))  # [B, h, w, p, p, C]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).contiguous()
