"""Keys and values of the past, computed once: preallocated, so that shapes never change; rows can be reordered.

Two ways to read them. Slices of what is filled, which is the least work, and the default off CUDA. Or
``static``: every pass reads the whole storage under a mask and all positions are tensors, so that a
pass of one token is the same program at every position, for CUDA graphs and ``torch.compile``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """What the attention layers of a causal transformer have read so far, for a batch of rows.

    A forward pass of n positions asks for ``mask(n)`` once, lets every layer ``write``, and ends with
    ``advance(n)``. Between passes rows may be reordered or branched, and positions forgotten.

    Args:
        num_layers, num_rows, num_heads, head_dim, max_length: the sizes.
        dtype: of what is stored; float32, bfloat16 or float16, whatever the model computes in.
        device: where.
        static: read by masks over the whole storage instead of slices; see the module's text.
        pinned: tell ``torch.compile`` that the storage stays where it is, without which it makes no CUDA graphs that write to it.

    Attributes:
        keys, values: [layers, B, heads, max_length, head_dim]; only the first ``length`` positions count.
        length: how many positions are filled, the same in every row.
        context: what else belongs to the rows for good (modulation, keys and values of a text), [B, ...] by name.
        memo: what a model has computed for its own use and no row owns; copies share it.
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
        static: bool = False,
        pinned: bool = False,
    ) -> None:
        shape = (num_layers, num_rows, num_heads, max_length, head_dim)
        # A masked position still weighs 0, and 0 times what fresh memory holds may be NaN.
        make = torch.zeros if static else torch.empty
        self.keys = make(shape, dtype=dtype, device=device)
        self.values = make(shape, dtype=dtype, device=device)
        self.length = 0
        self.context: dict[str, Tensor] = {}
        self.memo: dict[str, Any] = {}
        self._position = torch.zeros(1, dtype=torch.int64, device=device) if static else None
        self._pinned = pinned
        self._pin()

    @property
    def static(self) -> bool:
        """Whether it is read under masks, at positions that are tensors."""
        return self._position is not None

    @property
    def num_rows(self) -> int:
        """B."""
        return self.keys.shape[1]

    @property
    def max_length(self) -> int:
        """How many positions fit."""
        return self.keys.shape[3]

    def positions(self, num_new: int) -> slice | Tensor:
        """Where the next ``num_new`` positions stand, as an index into tables."""
        if self._position is None:
            return slice(self.length, self.length + num_new)
        if num_new == 1:
            return self._position
        return self._position + torch.arange(num_new, device=self.keys.device)

    def mask(self, num_new: int) -> Tensor | None:
        """bool [num_new, positions read]: what each new position may read; None where that is everything."""
        if self._position is not None:
            return torch.arange(self.max_length, device=self.keys.device) <= self.positions(num_new)[:, None]
        if num_new == 1:
            return None
        total = self.length + num_new
        return torch.ones(num_new, total, dtype=torch.bool, device=self.keys.device).tril(self.length)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put down a layer's new keys and values [B, heads, n, head_dim]; returns what is to be read, past ones first."""
        if self._position is not None:
            at = self.positions(keys.shape[2])
            self.keys[layer].index_copy_(2, at, keys.to(self.keys.dtype))
            self.values[layer].index_copy_(2, at, values.to(self.values.dtype))
            return self.keys[layer], self.values[layer]
        end = self.length + keys.shape[2]
        self._check(keys.shape[0], keys.shape[2])
        all_keys, all_values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        all_keys[:, :, self.length :] = keys
        all_values[:, :, self.length :] = values
        return all_keys, all_values

    def advance(self, num_new: int) -> None:
        """Count positions that every layer has written."""
        self._check(self.num_rows, num_new)
        self.length += num_new
        if self._position is not None:
            self._position += num_new

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes a copy of the old row ``rows[i]``; there may be more or fewer rows than before."""
        self.keys, self.values = (self._take(buffer, rows) for buffer in (self.keys, self.values))
        self._pin()
        for name, tensor in self.context.items():
            taken = tensor[rows]
            self.context[name] = tensor.copy_(taken) if len(rows) == len(tensor) else taken

    def branch(self, num: int) -> None:
        """Every row ``num`` times, copies of a row side by side."""
        if num != 1:
            self.reorder(torch.arange(self.num_rows, device=self.keys.device).repeat_interleave(num))

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache has {self.length} positions, it cannot be cut to {length}")
        self.length = length
        if self._position is not None:
            self._position.fill_(length)

    def copy(self) -> KVCache:
        """An independent cache of the same content."""
        other = object.__new__(KVCache)
        other.keys, other.values, other.length = self.keys.clone(), self.values.clone(), self.length
        other.context = {name: tensor.clone() for name, tensor in self.context.items()}
        other.memo = dict(self.memo)
        other._position = None if self._position is None else self._position.clone()
        other._pinned = self._pinned
        other._pin()
        return other

    def _pin(self) -> None:
        if self._pinned:
            for buffer in (self.keys, self.values, self._position):
                torch._dynamo.mark_static_address(buffer)

    def _check(self, num_rows: int, num_new: int) -> None:
        if num_rows != self.num_rows or self.length + num_new > self.max_length:
            raise ValueError(
                f"the cache holds {self.num_rows} rows of {self.max_length} positions, {self.length} of them filled; "
                f"{num_new} more of {num_rows} rows do not fit"
            )

    def _take(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """Only filled positions are copied; the storage is kept where the number of rows stays."""
        filled = buffer[:, rows, :, : self.length]  # indexing copies, so the storage may be overwritten
        if len(rows) != buffer.shape[1]:
            shape = (buffer.shape[0], len(rows), *buffer.shape[2:])
            buffer = buffer.new_zeros(shape) if self.static else buffer.new_empty(shape)
        buffer[:, :, :, : self.length] = filled
        return buffer


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: KVCache | None = None,
    *,
    layer: int = 0,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention [B, heads, n, head_dim] of new positions to themselves and to what is before them.

    Args:
        query, key, value: of the new positions, [B, heads, n, head_dim].
        cache: of what is before them; None where nothing is.
        layer: which of the cache's layers this is.
        mask: ``cache.mask(n)``.
        scale: of the products; None is head_dim^-1/2.
        dropout: the share of weights that is dropped; without a cache only.
    """
    if cache is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, dropout_p=dropout)
    key, value = cache.write(layer, key, value)
    if query.dtype == key.dtype:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    out = F.scaled_dot_product_attention(query.to(key.dtype), key, value, attn_mask=mask, scale=scale)
    return out.to(query.dtype)
