"""Finite scalar quantisation (FSQ, arXiv:2309.15505): every channel is rounded to a few levels.

Latents are taken as they are and clamped to [-1, 1], where the levels lie evenly spaced from -1
to 1; a family that bounds its latents with tanh does so before. There is no codebook to learn and
no auxiliary loss. Levels and place values are integer buffers: in bf16, arithmetic on ids is wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.quantizers.base import Quantized, Quantizer

_MAX_CODEBOOK_SIZE = 2**62


class FiniteScalarQuantizer(Quantizer):
    """Round each of C channels to its number of levels.

    Args:
        levels: number of levels of each channel, at least 2 each; the codebook size is their product.
    Raises:
        ConfigError: fewer levels, or more ids than 64 bits hold.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"levels are two or more a channel, got {levels}")
        if math.prod(levels) > _MAX_CODEBOOK_SIZE:
            raise ConfigError(f"the levels {levels} make {math.prod(levels)} ids, which do not fit 64 bits")
        self.code_dim = len(levels)
        self.codebook_size = tuple(levels)
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int64), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values, dtype=torch.int64), persistent=False)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise [B, L, C]; the gradient passes straight through, and is zero where latents were clamped."""
        with torch.autocast(latents.device.type, enabled=False):
            bounded = latents.float().clamp(-1.0, 1.0)
            digits = self._digits(bounded)
            quantised = self._values(digits)
            ids = (digits * self.place_values).sum(dim=-1)
            return Quantized(latents=bounded + (quantised - bounded).detach(), ids=ids)

    def lookup(self, ids: Tensor) -> Tensor:
        """The level values in [-1, 1] of ids [B, L] -> [B, L, C]."""
        return self._values((ids[..., None] // self.place_values) % self.levels)

    def _digits(self, bounded: Tensor) -> Tensor:
        return ((bounded + 1.0) / 2.0 * (self.levels - 1)).round().long()

    def _values(self, digits: Tensor) -> Tensor:
        return digits.float() / (self.levels - 1) * 2.0 - 1.0
