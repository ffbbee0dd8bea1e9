"""How many leading tokens nested dropout keeps (Matryoshka-like training; FlexTok, arXiv:2502.13967)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NestedDropout = Literal["none", "uniform", "pow2", "uniform_pow2"]


def length_probabilities(mode: NestedDropout, num_tokens: int) -> Tensor:
    """The probability of keeping 1, 2, ..., N tokens: [N] fp64, summing to one.

    Args:
        mode: ``none`` keeps all; ``uniform``; ``pow2``: powers of two (and N), each as likely;
            ``uniform_pow2``: uniform, then rounded up to a power of two (or N).
        num_tokens: N.
    """
    weights = torch.zeros(num_tokens, dtype=torch.float64)
    powers = [1 << k for k in range(num_tokens.bit_length()) if 1 << k < num_tokens] + [num_tokens]
    if mode == "none":
        weights[-1] = 1.0
    elif mode == "uniform":
        weights[:] = 1.0
    elif mode == "pow2":
        weights[torch.tensor(powers) - 1] = 1.0
    else:
        for below, power in zip([0, *powers], powers, strict=False):
            weights[power - 1] = power - below
    return weights / weights.sum()


def draw_lengths(
    mode: NestedDropout, num_tokens: int, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` independent lengths: int64 [count] in 1..N, on the generator's device."""
    device = generator.device if generator is not None else None
    ends = length_probabilities(mode, num_tokens).cumsum(0)
    draws = torch.rand(count, dtype=torch.float64, generator=generator, device=device)
    return (torch.searchsorted(ends.to(draws.device), draws, right=True) + 1).clamp_max(num_tokens)
