"""What every discrete quantizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Quantized:
    """The outcome of quantising latents [B, L, C].

    Attributes:
        latents: [B, L, C] fp32, the quantised vectors; gradients pass straight through to the input.
        ids: int64 [B, L].
        losses: named scalar terms, each with its weight inside; empty where the quantizer needs none.
    """

    latents: Tensor
    ids: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Maps latents to ids and ids to latents; ``quantize(lookup(ids)) == ids`` always holds.

    Attributes:
        code_dim: C, channels of a latent.
        codebook_size: number of ids, or a tuple of factors whose product it is.
    """

    code_dim: int
    codebook_size: int | tuple[int, ...]

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, L, C] of any float dtype."""

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """The vectors of ids: int64 [B, L] -> fp32 [B, L, C]."""
