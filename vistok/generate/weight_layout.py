"""How weights lie in memory while few rows are generated on a CPU."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Measured with MKL and oneDNN, one thread, on layers of 768 to 16,384 features. A product with one row takes 0.7 of the time where the
# weights lie column by column and there are more outputs than inputs (1.3 where there are fewer); with 2 to 24 rows it takes 0.5 to 0.9
# with weights packed by oneDNN, which from 48 rows on wins nothing. To lay down all weights anew takes as long as 5 to 15 passes do.
# In huge pages the columns are quicker to write and to read: all 256 tokens of GPT-B take 0.9 of the time. oneDNN needs longer for 2
# rows than for 4, of which two are padding: they take 0.75 of the time.
_MOST_ROWS = 24
_FEWEST_PACKED_ROWS = 4
_FEWEST_PASSES = 128
_MOST_BYTES = 2**32


@contextmanager
def few_rows(module: nn.Module, rows: int, passes: int) -> Iterator[None]:
    """Within it, linear layers read weights that lie as it suits few rows, where that is faster: same values, other order.

    The module's own parameters are put back as they were, so nothing outside sees a difference but for the rounding of sums;
    meanwhile the weights are held twice.

    Args:
        module: whose linear layers, fp32 on a CPU.
        rows: how many rows a pass has, with those of guidance.
        passes: how many passes there will be at most.
    """
    layers = _layers(module, rows) if rows <= _MOST_ROWS and passes >= _FEWEST_PASSES else []
    own = [layer.weight for layer in layers]
    if sum(weight.nbytes for weight in own) > _MOST_BYTES:
        layers = own = []
    columns = _Columns(sum(weight.numel() for weight in own)) if rows == 1 else None
    try:
        for layer, weight in zip(layers, own, strict=True):
            if columns is not None:
                layer.weight = nn.Parameter(columns.lay(weight), requires_grad=False)
            else:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), max(rows, _FEWEST_PACKED_ROWS))
                layer.forward = partial(_packed_linear, packed, layer.bias)  # hides the class's own
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight = weight
            layer.__dict__.pop("forward", None)


class _Columns:
    """Room for weights that lie column by column, in huge pages where the system has them.

    Args:
        num_values: of all that will be laid down, fp32.
    """

    def __init__(self, num_values: int) -> None:
        if hasattr(mmap, "MADV_HUGEPAGE") and num_values:
            room = mmap.mmap(-1, 4 * num_values, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without them
                room.madvise(mmap.MADV_HUGEPAGE)
            self._room = torch.frombuffer(room, dtype=torch.float32)
        else:
            self._room = torch.empty(num_values)

    def lay(self, weight: Tensor) -> Tensor:
        """A copy of [out, in] in the room that is left."""
        taken, self._room = self._room[: weight.numel()], self._room[weight.numel() :]
        return taken.view(weight.t().shape).copy_(weight.detach().t()).t()


def _packed_linear(packed: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    count = x[..., 0].numel()
    if not 0 < count < _FEWEST_PACKED_ROWS:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    rows = F.pad(x.reshape(count, -1), (0, 0, 0, _FEWEST_PACKED_ROWS - count))
    out = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out[:count].view(*x.shape[:-1], -1)


def _layers(module: nn.Module, rows: int) -> list[nn.Linear]:
    """Those that win."""
    if getattr(module, "compiled", False) or not (_has_mkl() if rows == 1 else _has_packing()):
        return []
    return [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear
        and (rows > 1 or layer.out_features > layer.in_features)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
    ]


def _has_mkl() -> bool:
    return torch.backends.mkl.is_available()


def _has_packing() -> bool:
    """The operators that torch's own compiler packs weights with; a build may lack them."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
