"""Finite scalar quantisation (FSQ, arXiv:2309.15505): every channel is rounded to a few levels.

There is no codebook to learn and no auxiliary loss. Levels and place values are integer buffers: in
bf16, arithmetic on ids is wrong. Two ways of bounding latents:

- ``clamp``: latents are taken as they are and clamped to [-1, 1], where the levels lie evenly
  spaced from -1 to 1.
- ``tanh``, as the paper's appendix has it: latents of any size are squashed onto the levels. An even
  number L of levels lies at -1, ..., 1 - 2 / L, an odd one is symmetric. What is looked up is a place on
  this scale, not a latent that would be rounded to it, so ``lookup`` is undone by ``ids_of``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.quantizers.base import Quantized, Quantizer

_MAX_CODEBOOK_SIZE = 2**62
_TANH_EPS = 1e-3  # the outermost levels are reached by finite latents


class FiniteScalarQuantizer(Quantizer):
    """Round each of C channels to its number of levels.

    Args:
        levels: number of levels of each channel, at least 2 each; the codebook size is their product.
        bound: how latents are brought into range, ``clamp`` or ``tanh``.
    Raises:
        ConfigError: fewer levels, or more ids than 64 bits hold.
    """

    def __init__(self, levels: tuple[int, ...], *, bound: Literal["clamp", "tanh"] = "clamp") -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"levels are two or more a channel, got {levels}")
        if math.prod(levels) > _MAX_CODEBOOK_SIZE:
            raise ConfigError(f"the levels {levels} make {math.prod(levels)} ids, which do not fit 64 bits")
        if bound not in ("clamp", "tanh"):
            raise ConfigError(f"latents are bounded by clamp or tanh, got {bound!r}")
        self.code_dim = len(levels)
        self.codebook_size = tuple(levels)
        self.bound = bound
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int64), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values, dtype=torch.int64), persistent=False)

    def forward(self, latents: Tensor, *, unrounded: Tensor | None = None) -> Quantized:
        """Quantise [B, L, C]; the gradient passes straight through the rounding.

        With ``clamp`` it is zero where latents were clamped; with ``tanh`` it has the slope of tanh.

        Args:
            latents: of any float dtype.
            unrounded: bool [B]; images whose latents are bounded but not rounded (ids are, still).
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self.bounded(latents)
            digits = self._digits(bounded)
            quantised = self._values(digits)
            scaled = bounded if self.bound == "clamp" else bounded / (self.levels // 2)
            rounded = quantised if unrounded is None else torch.where(unrounded[:, None, None], scaled, quantised)
            ids = (digits * self.place_values).sum(dim=-1)
            return Quantized(latents=scaled + (rounded - scaled).detach(), ids=ids)

    def lookup(self, ids: Tensor) -> Tensor:
        """The level values in [-1, 1] of ids [B, L] -> [B, L, C]."""
        return self._values((ids[..., None] // self.place_values) % self.levels)

    def ids_of(self, values: Tensor) -> Tensor:
        """The ids of level values [..., C], as ``lookup`` gives them (also rounded to bf16): int64 [...]."""
        values = values.float()
        if self.bound == "clamp":
            digits = self._digits(values)
        else:
            digits = (values * (self.levels // 2)).round().long() + self.levels // 2
        return (digits * self.place_values).sum(dim=-1)

    def bounded(self, latents: Tensor) -> Tensor:
        """Latents in range but not rounded, fp32: in [-1, 1] for ``clamp``; for ``tanh`` one unit is one level."""
        latents = latents.float()
        if self.bound == "clamp":
            return latents.clamp(-1.0, 1.0)
        half_width, offset, shift = self._tanh_terms()
        return torch.tanh(latents + shift) * half_width - offset

    def rounding_margin(self, latents: Tensor) -> Tensor:
        """How far the id of each token [B, L, C] -> [B, L] is from another one, in levels: 0 to 0.5, the smallest over channels.

        Float error smaller than this cannot change the id.
        """
        bounded = self.bounded(latents)
        if self.bound == "clamp":
            bounded = (bounded + 1.0) / 2.0 * (self.levels - 1)
        return (bounded - bounded.floor() - 0.5).abs().amin(dim=-1)

    def _tanh_terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Half the width of the bounded range, and the offset and shift that centre even numbers of levels."""
        half_width = (self.levels - 1).float() * (1.0 + _TANH_EPS) / 2.0
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return half_width, offset, torch.atanh(offset / half_width)

    def _digits(self, bounded: Tensor) -> Tensor:
        if self.bound == "clamp":
            return ((bounded + 1.0) / 2.0 * (self.levels - 1)).round().long()
        return bounded.round().long() + self.levels // 2

    def _values(self, digits: Tensor) -> Tensor:
        if self.bound == "clamp":
            return digits.float() / (self.levels - 1) * 2.0 - 1.0
        half = self.levels // 2
        return (digits - half).float() / half
