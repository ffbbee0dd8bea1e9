"""Keys and values of the past, computed once: preallocated, so that shapes never change; rows can be reordered."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """What the attention layers of a causal transformer have read so far, for a batch of rows.

    A forward pass of n positions asks for ``mask(n)`` once, lets every layer ``write``, and ends with
    ``advance(n)``. Between passes rows may be reordered or branched, and positions forgotten.

    Attributes:
        keys, values: [layers, B, heads, max_length, head_dim]; only the first ``length`` positions count.
        length: how many positions are filled, the same in every row.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_heads: int,
        head_dim: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, num_rows, num_heads, max_length, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def num_rows(self) -> int:
        """B."""
        return self.keys.shape[1]

    @property
    def max_length(self) -> int:
        """How many positions fit."""
        return self.keys.shape[3]

    def mask(self, num_new: int) -> Tensor | None:
        """bool [num_new, length + num_new]: what each new position may read; None where that is everything."""
        if num_new == 1:
            return None
        total = self.length + num_new
        return torch.ones(num_new, total, dtype=torch.bool, device=self.keys.device).tril(self.length)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put down a layer's new keys and values [B, heads, n, head_dim]; returns all of them, past ones first."""
        end = self.length + keys.shape[2]
        if keys.shape[0] != self.num_rows or end > self.max_length:
            raise ValueError(
                f"the cache holds {self.num_rows} rows of {self.max_length} positions, {self.length} of them filled; "
                f"{keys.shape[2]} more of {keys.shape[0]} rows do not fit"
            )
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_new: int) -> None:
        """Count positions that every layer has written."""
        self.length += num_new

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes a copy of the old row ``rows[i]``; there may be more or fewer rows than before."""
        self.keys, self.values = (self._take(buffer, rows) for buffer in (self.keys, self.values))

    def branch(self, num: int) -> None:
        """Every row ``num`` times, copies of a row side by side."""
        if num != 1:
            self.reorder(torch.arange(self.num_rows, device=self.keys.device).repeat_interleave(num))

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache has {self.length} positions, it cannot be cut to {length}")
        self.length = length

    def copy(self) -> KVCache:
        """An independent cache of the same content."""
        other = object.__new__(KVCache)
        other.keys, other.values, other.length = self.keys.clone(), self.values.clone(), self.length
        return other

    def _take(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """Only filled positions are copied; the storage is kept where the number of rows stays."""
        filled = buffer[:, rows, :, : self.length]  # indexing copies, so the storage may be overwritten
        if len(rows) != buffer.shape[1]:
            buffer = buffer.new_empty((buffer.shape[0], len(rows), *buffer.shape[2:]))
        buffer[:, :, :, : self.length] = filled
        return buffer
