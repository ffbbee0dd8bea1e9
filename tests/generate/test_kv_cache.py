"""The cache alone: rows, lengths, limits."""

from __future__ import annotations

import pytest
import torch

from vistok.generate.kv_cache import KVCache, StoragePool, causal_attention


def filled(rows: int = 3, length: int = 4) -> KVCache:
    cache = KVCache(num_layers=2, num_rows=rows, num_heads=2, head_dim=3, max_length=6)
    for layer in range(2):
        cache.write(layer, torch.randn(rows, 2, length, 3), torch.randn(rows, 2, length, 3))
    cache.advance(length)
    return cache


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [0], [2, 2, 1, 0, 0]])
def test_reorder(rows):
    cache = filled()
    keys, values = cache.keys[:, rows, :, :4].clone(), cache.values[:, rows, :, :4].clone()
    cache.reorder(torch.tensor(rows))
    assert cache.num_rows == len(rows) and cache.length == 4 and cache.max_length == 6
    assert torch.equal(cache.keys[:, :, :, :4], keys) and torch.equal(cache.values[:, :, :, :4], values)


def test_reordering_as_many_rows_keeps_the_storage():
    cache = filled()
    where = cache.keys.data_ptr()
    cache.reorder(torch.tensor([2, 1, 0]))
    assert cache.keys.data_ptr() == where


@pytest.mark.parametrize("rows", [[2, 1, 0], [1, 1], [0, 0, 1, 2]])
@pytest.mark.parametrize("pool", [None, StoragePool()])
def test_reordering_leaves_what_was_given_alone(rows, pool):
    """A class that a cache keeps may be the caller's own tensor."""
    cache = KVCache(num_layers=1, num_rows=3, num_heads=1, head_dim=2, max_length=4, static=pool is not None, pool=pool)
    given = torch.tensor([5, 6, 7])
    cache.keep(labels=given)
    cache.reorder(torch.tensor(rows))
    assert given.tolist() == [5, 6, 7] and cache.context["labels"].tolist() == given[rows].tolist()


def test_a_pool_keeps_the_sizes_used_last():
    pool = StoragePool()
    for rows in range(1, 101):
        KVCache(num_layers=1, num_rows=rows, num_heads=1, head_dim=1, max_length=1, static=True, pool=pool)
    assert len(pool._spare) == 40
    where = KVCache(
        num_layers=1, num_rows=90, num_heads=1, head_dim=1, max_length=1, static=True, pool=pool
    ).keys.data_ptr()
    again = KVCache(num_layers=1, num_rows=90, num_heads=1, head_dim=1, max_length=1, static=True, pool=pool)
    assert again.keys.data_ptr() == where


def test_branch_puts_copies_side_by_side():
    cache = filled(rows=2)
    keys = cache.keys[:, [0, 0, 0, 1, 1, 1], :, :4].clone()
    cache.branch(3)
    assert torch.equal(cache.keys[:, :, :, :4], keys)


def test_truncate_and_write_again():
    cache = filled()
    cache.truncate(2)
    new = torch.randn(3, 2, 1, 3)
    keys, _ = cache.write(0, new, new)
    assert keys.shape == (3, 2, 3, 3) and torch.equal(keys[:, :, 2:], new)
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.truncate(3)


def test_a_copy_is_independent():
    cache = filled()
    other = cache.copy()
    other.keys.zero_()
    other.truncate(0)
    assert cache.length == 4 and bool(cache.keys[:, :, :, :4].any())


def test_too_much_is_refused():
    cache = filled()
    with pytest.raises(ValueError, match="do not fit"):
        cache.write(0, torch.zeros(3, 2, 3, 3), torch.zeros(3, 2, 3, 3))
    with pytest.raises(ValueError, match="do not fit"):
        cache.write(0, torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 3))


def test_mask_lets_new_positions_read_the_past_and_themselves():
    cache = filled(length=2)
    assert cache.mask(1) is None
    assert cache.mask(2).tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_static_and_sliced_caches_give_the_same_attention(dtype):
    """Chunks, a truncation, a reordering and a copy; what static caches read beyond their length does not count."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_rows": 2, "num_heads": 2, "head_dim": 4, "max_length": 9, "dtype": dtype}
    caches = [KVCache(**sizes, static=static) for static in (False, True)]
    chunks = [torch.randn(3, 2, 2, n, 4) for n in (1, 3, 1, 2)]

    def step(chunk: torch.Tensor) -> None:
        outs = []
        for cache in caches:
            n = chunk.shape[3]
            outs.append(causal_attention(*chunk, cache, mask=cache.mask(n)))
            cache.advance(n)
        torch.testing.assert_close(*outs, atol=1e-2 if dtype != torch.float32 else 1e-6, rtol=1e-2)

    for chunk in chunks:
        step(chunk)
    for cache in caches:
        cache.truncate(4)
        cache.reorder(torch.tensor([1, 1]))
    step(chunks[1])
    caches = [cache.copy() for cache in caches]
    step(chunks[0])
    assert [cache.length for cache in caches] == [8, 8] and caches[1].positions(1).tolist() == [8]


def test_what_belongs_to_rows_moves_with_them():
    cache = filled()
    cache.context["terms"] = torch.arange(3.0)
    cache.reorder(torch.tensor([2, 2, 0]))
    assert cache.context["terms"].tolist() == [2.0, 2.0, 0.0]
    other = cache.copy()
    cache.branch(2)
    assert cache.context["terms"].tolist() == [2.0, 2.0, 2.0, 2.0, 0.0, 0.0] and len(other.context["terms"]) == 3
