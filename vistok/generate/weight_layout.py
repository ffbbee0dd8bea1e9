"""How weights lie in memory while few rows are generated on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Measured with MKL on a model of GPT-B's size: passes of one or two rows take 0.8 of the time, of four rows 1.1; to turn all weights
# takes as long as about 15 passes do, which 128 passes win back twice.
_MOST_ROWS = 2
_FEWEST_PASSES = 128
_MOST_BYTES = 2**32


@contextmanager
def few_rows(module: nn.Module, rows: int, passes: int) -> Iterator[None]:
    """Within it, linear layers read weights that lie column by column, where that is faster: same values, other order.

    The module's own parameters are put aside and put back as they were, so nothing outside sees a difference but for the rounding
    of sums; meanwhile both are held.

    Args:
        module: whose linear layers, fp32 on a CPU.
        rows: how many rows a pass has, with those of guidance.
        passes: how many passes there will be at most.
    """
    layers = _layers(module) if rows <= _MOST_ROWS and passes >= _FEWEST_PASSES else []
    own = [layer.weight for layer in layers]
    if sum(weight.nbytes for weight in own) > _MOST_BYTES:
        layers = own = []
    try:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight = weight


def _layers(module: nn.Module) -> list[nn.Linear]:
    if not torch.backends.mkl.is_available() or getattr(module, "compiled", False):
        return []
    return [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    ]
