"""Fixed position tables, rotations and time features."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """The sine-cosine table of a grid, [1, D, h, w] fp32.

    Its channels are four quarters: sine and cosine of the first coordinate, then of the second, at
    D / 4 frequencies from 1 down to 1/10000. The coordinates of cell f (row-major) are f // h and
    f % h: row and column on a square grid, and on others what published tables hold.

    Args:
        height, width: of the grid.
        dim: D, a multiple of four.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional sine-cosine table has a multiple of four channels, not {dim}")
    cells = torch.arange(height * width)
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # [D/4]
    quarters = []
    for coordinate in (cells // height, cells % height):
        angles = frequencies[:, None] * coordinate  # [D/4, h*w]
        quarters += [angles.sin(), angles.cos()]
    return torch.cat(quarters).reshape(1, dim, height, width).float()


def timestep_features(t: Tensor, dim: int, *, max_timestep: float = 1000.0, max_period: float = 256.0) -> Tensor:
    """Cosines, then sines, of times [B] at D / 2 frequencies: [B, D] fp32.

    Args:
        t: times.
        dim: D, even.
        max_timestep: the frequencies are those for times in [0, 1000]; times in [0, max_timestep] are stretched to that.
        max_period: ratio of the highest frequency to the limit of the lowest.
    """
    frequencies = _frequencies(dim // 2, max_period, t.device)
    angles = t.float()[:, None] * ((1000.0 / max_timestep) * frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache(maxsize=16)
def _frequencies(num: int, max_period: float, device: torch.device) -> Tensor:
    """From 1 down to nearly 1 / max_period, fp32 [num].

    The exponents are of single precision, as published models have them, but the exponential is rounded
    rightly: those of different machines differ in the last bit, which times near 1000 multiply.
    """
    exponents = -math.log(max_period) * torch.arange(num, dtype=torch.float32, device="cpu") / num
    return exponents.double().exp().float().to(device)


def rotary_2d(height: int, width: int, head_dim: int, *, base: float = 10000.0) -> Tensor:
    """The rotations of a grid's cells (row-major) for heads of width d: cosines and sines, [h*w, d/2, 2] fp32.

    The first half of the pairs turns with the row, the second with the column (RoFormer, arXiv:2104.09864, on two axes).

    Args:
        height, width: of the grid.
        head_dim: d, a multiple of four.
        base: the pairs turn by 1 down to nearly 1 / base a cell.
    """
    if head_dim % 4:
        raise ValueError(f"rotations of two coordinates want heads whose width is a multiple of four, not {head_dim}")
    half = head_dim // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2).float() / half)  # [d/4]
    cells = torch.arange(height * width)
    rows, columns = (torch.outer(axis.float(), frequencies) for axis in (cells // width, cells % width))
    angles = torch.cat([rows, columns], dim=-1)  # [h*w, d/2]
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate_pairs(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x [..., n, d] by rotations [n, d/2, 2]; fp32 inside, or fp64 where x is."""
    wide = x if x.dtype == torch.float64 else x.float()
    even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotations.unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)
