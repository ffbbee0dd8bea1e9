"""Keys and values of the past, computed once: preallocated, so that shapes never change; rows can be reordered.

Two ways to read them. Slices of what is filled, which is the least work, and the default off CUDA. Or
``static``: every pass reads the whole storage under a mask and all positions are tensors, so that a
pass of one token is the same program at every position, for CUDA graphs and ``torch.compile``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Enough for all sizes of which ``torch.compile`` makes programs, with what a family keeps beside keys and values.
_MOST_SPARE_KEYS = 40


class StoragePool:
    """Memory of caches that are gone, for later ones of the same sizes.

    A CUDA graph reads and writes the places that it was recorded with, so it is recorded anew for places that it has not seen.
    With a pool there are only as many as there are caches at a time. What was not used for longest goes when there is much.
    """

    def __init__(self) -> None:
        self._spare: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}

    def take(self, key: tuple[Any, ...], make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Tensors that are given back together, all zeros; ``make`` makes them where none are spare."""
        spare = self._spare.get(key)
        if spare:
            for tensor in spare[-1]:
                tensor.zero_()
            return spare.pop()
        tensors = make()
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)  # without which no graph is made that writes to it
        return tensors

    def give(self, taken: dict[tuple[Any, ...], tuple[Tensor, ...]]) -> None:
        """Take back what a cache had, by key."""
        for key, tensors in taken.items():
            self._spare[key] = [*self._spare.pop(key, []), tensors]  # the latest key last
        taken.clear()
        while len(self._spare) > _MOST_SPARE_KEYS:
            del self._spare[next(iter(self._spare))]


class KVCache:
    """What the attention layers of a causal transformer have read so far, for a batch of rows.

    A forward pass of n positions asks for ``mask(n)`` once, lets every layer ``write``, and ends with
    ``advance(n)``. Between passes rows may be reordered or branched, and positions forgotten.

    Args:
        num_layers, num_rows, num_heads, head_dim, max_length: the sizes.
        dtype: of what is stored; float32, bfloat16 or float16, whatever the model computes in.
        device: where.
        static: read by masks over the whole storage instead of slices; see the module's text.
        pool: where memory comes from, and goes when the cache is no more, for compiled steps; None makes it.

    Attributes:
        keys, values: [layers, B, heads, max_length, head_dim]; only the first ``length`` positions count.
        length: how many positions are filled, the same in every row.
        context: what else belongs to the rows for good (modulation, keys and values of a text), [B, ...] by name; see ``keep``.
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
        pool: StoragePool | None = None,
    ) -> None:
        self._pool, self._static = pool, static
        self._taken: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        if pool is not None:
            weakref.finalize(self, pool.give, self._taken)
        self.length = 0
        self.context: dict[str, Tensor] = {}
        self.memo: dict[str, Any] = {}
        shape = (num_layers, num_rows, num_heads, max_length, head_dim)
        self.keys, self.values, self._position = self._storage(shape, dtype, torch.device(device))

    @property
    def static(self) -> bool:
        """Whether it is read under masks, at positions that are tensors."""
        return self._static

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

    def keep(self, **context: Tensor) -> None:
        """Put tensors [B, ...] into ``context``; with a pool they are copied into its memory."""
        for name, tensor in context.items():
            if self._pool is not None:
                key = (name, tensor.shape, tensor.dtype, tensor.device)
                if key not in self._taken:
                    self._taken[key] = self._pool.take(key, lambda like=tensor: (torch.zeros_like(like),))
                tensor = self._taken[key][0].copy_(tensor)
            self.context[name] = tensor

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes a copy of the old row ``rows[i]``; there may be more or fewer rows than before."""
        # Indexing copies, so what is read may be overwritten; only filled positions are copied.
        context = {name: tensor[rows] for name, tensor in self.context.items()}
        if len(rows) == self.num_rows:
            for buffer in (self.keys, self.values):
                buffer[:, :, :, : self.length] = buffer[:, rows, :, : self.length]
        else:
            self._resize(rows)
        self.keep(**context)

    def _resize(self, rows: Tensor) -> None:
        """New storage for another number of rows, with what is filled."""
        layers, _, *sizes = self.keys.shape
        dtype, device = self.keys.dtype, self.keys.device
        filled = [buffer[:, rows, :, : self.length] for buffer in (self.keys, self.values)]
        if self._pool is not None:
            self._pool.give(self._taken)
        del self.keys, self.values  # before the new ones are made
        self.keys, self.values, self._position = self._storage((layers, len(rows), *sizes), dtype, device)
        for buffer, content in zip((self.keys, self.values), filled, strict=True):
            buffer[:, :, :, : self.length] = content
        if self._position is not None:
            self._position.fill_(self.length)

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
        layers, rows, heads, length, width = self.keys.shape
        other = KVCache(
            num_layers=layers,
            num_rows=rows,
            num_heads=heads,
            head_dim=width,
            max_length=length,
            dtype=self.keys.dtype,
            device=self.keys.device,
            static=self.static,
            pool=self._pool,
        )
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            theirs[:, :, :, : self.length] = mine[:, :, :, : self.length]
        other.length, other.memo = self.length, dict(self.memo)
        if self._position is not None:
            other._position.copy_(self._position)
        other.keep(**{name: tensor.clone() for name, tensor in self.context.items()})
        return other

    def _storage(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and, where it is a tensor, the position."""
        if not self._static:
            return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device), None

        def make() -> tuple[Tensor, Tensor, Tensor]:
            # A masked position still weighs 0, and 0 times what fresh memory holds may be NaN.
            keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            return keys, values, torch.zeros(1, dtype=torch.int64, device=device)

        if self._pool is None:
            return make()
        key = ("cache", shape, dtype, device)
        self._taken[key] = self._pool.take(key, make)
        return self._taken[key]

    def _check(self, num_rows: int, num_new: int) -> None:
        if num_rows != self.num_rows or self.length + num_new > self.max_length:
            raise ValueError(
                f"the cache holds {self.num_rows} rows of {self.max_length} positions, {self.length} of them filled; "
                f"{num_new} more of {num_rows} rows do not fit"
            )


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
