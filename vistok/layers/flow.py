"""Rectified flow: noise levels for training, and the Euler sampler (arXiv:2209.03003).

A noised sample at level s is s * noise + (1 - s) * clean, and its velocity noise - clean; time and
level are the same number, and 1 is pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def noise_levels(u: Tensor, *, logit_normal: bool = False, stratified: bool = False, mode_scale: float = 0.0) -> Tensor:
    """Noise levels in [0, 1] from random numbers, both [B] (Stable Diffusion 3, arXiv:2403.03206, section 3.1).

    Args:
        u: normal numbers for plain ``logit_normal``, else uniform ones in [0, 1).
        logit_normal: levels are sigmoid(N(0, 1)); else they are drawn by mode sampling.
        stratified: with ``logit_normal``, one level from each of B equally likely intervals, in order.
        mode_scale: weight of the mode in mode sampling; 0 gives u itself.
    """
    if logit_normal and stratified:
        shares = (torch.arange(len(u), device=u.device) + u) / len(u)
        return torch.sigmoid(torch.special.ndtri(shares))
    if logit_normal:
        return torch.sigmoid(u)
    if mode_scale == 0.0:
        return u
    return 1.0 - u - mode_scale * (torch.cos(0.5 * math.pi * u).square() - 1.0 + u)


def add_noise(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Clean samples and noise [B, ...] at levels [B] -> noised samples [B, ...]."""
    levels = levels.view(-1, *[1] * (clean.ndim - 1)).to(clean.dtype)
    return levels * noise + (1.0 - levels) * clean


def time_grid(steps: int) -> list[float]:
    """The times at which a sampler of so many steps asks for velocities: 1, ..., 1 / steps."""
    return [(steps - index) / steps for index in range(steps)]


def euler_sample(velocity: Callable[[Tensor, int, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Follow a velocity from noise to a sample in equal steps.

    Args:
        velocity: (x [B, ...], index of the step, time) -> velocity [B, ...].
        noise: where to start, at time 1.
        steps: number of steps.
    """
    x = noise
    for index, time in enumerate(time_grid(steps)):
        x = x - velocity(x, index, time) / steps
    return x
