"""Combining a conditional and an unconditional prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def classifier_free_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional) (arXiv:2207.12598); scale 1 gives the conditional."""
    return unconditional + scale * (conditional - unconditional)


@dataclass(frozen=True)
class ApgConfig:
    """Adaptive projected guidance.

    Attributes:
        eta: how much of the part along the conditional prediction is kept.
        threshold: the longest difference, as a Euclidean norm over a sample; 0 for no limit.
        momentum: weight of the earlier differences; None for none. Negative values damp what repeats.
    """

    eta: float = 0.0
    threshold: float = 2.5
    momentum: float | None = -0.5


class AdaptiveProjectedGuidance:
    """Guidance without oversaturation (APG, arXiv:2410.02416): a new object for every sampling run.

    The difference of the two predictions is averaged over the steps, limited in length, and freed
    of the part along the conditional prediction, which is what oversaturates.
    """

    def __init__(self, config: ApgConfig) -> None:
        self.config = config
        self._average: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Predictions [B, ...] of one step -> the guided one; norms are taken over a sample."""
        config = self.config
        difference = conditional - unconditional
        if config.momentum is not None:
            difference = difference + config.momentum * self._average
            self._average = difference
        axes = tuple(range(1, difference.ndim))
        if config.threshold > 0:
            norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (config.threshold / norm).clamp_max(1.0)
        # In fp64: the rest after the projection is small beside what it is the difference of.
        exact, direction = difference.double(), conditional.double()
        length = torch.linalg.vector_norm(direction, dim=axes, keepdim=True).clamp_min(1e-12)
        direction = direction / length
        along = (exact * direction).sum(dim=axes, keepdim=True) * direction
        kept = ((exact - along) + config.eta * along).to(conditional.dtype)
        return conditional + (scale - 1.0) * kept
