"""A running average of a module's weights, over timm's ``ModelEmaV3`` with the recipes' warm-up.

The official TiTok code (``modeling/modules/ema_model.py``) has the same rule for the decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from timm.utils import ModelEmaV3
from torch import nn


def ema_decay(update: int, decay: float) -> float:
    """The decay of the ``update``-th update (1-based): the first copies, then min((1 + s) / (10 + s), decay), s = update - 1."""
    step = max(0, update - 1)
    return 0.0 if step == 0 else min((1 + step) / (10 + step), decay)


class Ema(ModelEmaV3):
    """The averaged copy is ``module``; it is in evaluation mode and has no gradients.

    Parameters are averaged. Buffers are copied: they are constants (which may be infinite, as in
    masks, and have no average), counters, or running averages already.

    Args:
        model: what is averaged; not yet prepared by accelerate, which rebinds ``forward``.
        decay: the largest decay.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        super().__init__(model, decay=decay, exclude_buffers=True)
        self.module.requires_grad_(False)

    def get_decay(self, step: int | None = None) -> float:
        """See ``ema_decay``; ``step`` is the number of the update."""
        if step is None:
            raise TypeError("say which update this is: update(model, step=1) is the first")
        return ema_decay(step, self.decay)


@contextmanager
def best_modules(trained: Mapping[str, nn.Module], averages: Mapping[str, Ema]) -> Iterator[dict[str, nn.Module]]:
    """For each trained module its average, or itself where none is kept, in evaluation mode meanwhile."""
    modules = {name: averages[name].module if name in averages else module for name, module in trained.items()}
    # Each part by itself: what a task keeps in evaluation mode while it trains the rest stays so.
    training = [part for module in modules.values() for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield modules
    finally:
        for part in training:
            part.training = True
