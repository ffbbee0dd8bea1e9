"""A running average of a module's weights, over timm's ``ModelEmaV3`` with the recipes' warm-up."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn


def ema_decay(update: int, decay: float) -> float:
    """The decay of the ``update``-th update (1-based): the first copies, then min((1 + s) / (10 + s), decay), s = update - 1."""
    step = max(0, update - 1)
    return 0.0 if step == 0 else min((1 + step) / (10 + step), decay)


class Ema(ModelEmaV3):
    """The averaged copy is ``module``; it is in evaluation mode and has no gradients.

    Args:
        model: what is averaged, buffers included.
        decay: the largest decay.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        super().__init__(model, decay=decay)
        self.module.requires_grad_(False)

    def get_decay(self, step: int | None = None) -> float:
        """See ``ema_decay``."""
        return ema_decay(step or 0, self.decay)

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Average floating-point tensors; copy the rest (counters, tables)."""
        sources = model.state_dict()
        for name, average in self.module.state_dict().items():
            value = sources[name].to(average.device)
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1.0 - decay)
            else:
                average.copy_(value)
