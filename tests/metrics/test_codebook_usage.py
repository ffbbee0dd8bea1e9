"""How much of a codebook is used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.metrics import CodebookUsage
from vistok.tokens import Tokens


def test_known_histogram() -> None:
    usage = CodebookUsage(8)
    usage.update(torch.tensor([[0, 0, 0, 0], [1, 1, 2, 3]]))
    assert usage.compute() == {"usage": 0.5, "entropy_bits": 1.75, "perplexity": 2**1.75, "dead_codes": 4}
    assert usage.tokens == 8
    assert usage.compute_factors() == []


def test_extremes() -> None:
    empty = CodebookUsage(16).compute()
    assert empty == {"usage": 0.0, "entropy_bits": 0.0, "perplexity": 1.0, "dead_codes": 16}
    one = CodebookUsage(16)
    one.update(torch.full((3, 5), 7))
    assert one.compute()["entropy_bits"] == 0.0
    assert math.copysign(1.0, one.compute()["entropy_bits"]) == 1.0
    even = CodebookUsage(16)
    even.update(torch.arange(16).repeat(3))
    assert even.compute() == {"usage": 1.0, "entropy_bits": 4.0, "perplexity": 16.0, "dead_codes": 0}


def test_tokens_past_a_rows_length_do_not_count() -> None:
    usage = CodebookUsage(4)
    usage.update(Tokens(ids=torch.tensor([[3, 2, 1], [3, 3, 3]]), lengths=torch.tensor([1, 3]), codebook_size=4))
    assert usage.tokens == 4
    assert usage.compute()["usage"] == 0.25


def test_product_codebook() -> None:
    """Ids are mixed-radix numbers, the first factor fastest, as in FSQ."""
    usage = CodebookUsage((2, 3))
    usage.update(torch.tensor([0, 2, 4]))  # digits (0, 0), (0, 1), (0, 2)
    first, second = usage.compute_factors()
    assert (first["usage"], first["entropy_bits"]) == (0.5, 0.0)
    assert second["usage"] == 1.0
    assert second["entropy_bits"] == pytest.approx(math.log2(3))
    whole = usage.compute()
    assert whole["usage"] == 0.5
    assert whole["factor_usage"] == 0.5
    assert whole["factor_entropy_bits"] == pytest.approx(whole["entropy_bits"])


def test_huge_product_is_counted_by_its_factors() -> None:
    usage = CodebookUsage((2,) * 40)
    usage.update(torch.tensor([0, 2**40 - 1]))
    assert usage.compute() == {"factor_usage": 1.0, "factor_entropy_bits": 40.0}


@given(st.lists(st.lists(st.integers(0, 11), max_size=8), min_size=1, max_size=6))
def test_merging_is_counting_together(parts: list[list[int]]) -> None:
    together, merged = CodebookUsage((3, 4)), CodebookUsage((3, 4))
    for part in parts:
        ids = torch.tensor(part, dtype=torch.int64)
        together.update(ids)
        other = CodebookUsage((3, 4))
        other.update(ids)
        merged.merge(other)
    assert merged.compute() == together.compute()
    assert merged.compute_factors() == together.compute_factors()
    assert merged.tokens == together.tokens == sum(map(len, parts))
    assert merged.compute()["entropy_bits"] <= merged.compute()["factor_entropy_bits"] + 1e-9


def test_refuses() -> None:
    for size in (0, -1, 2.5, (2, 0)):
        with pytest.raises(VistokError, match="codebook size"):
            CodebookUsage(size)
    with pytest.raises(VistokError, match="not counted"):
        CodebookUsage(2**30)
    usage = CodebookUsage(4)
    with pytest.raises(VistokError, match=r"\[0, 4\), got -1 to 4"):
        usage.update(torch.tensor([-1, 4]))
    with pytest.raises(VistokError, match="whole numbers"):
        usage.update(torch.rand(2, 2))
    with pytest.raises(VistokError, match="continuous"):
        usage.update(Tokens(latents=torch.rand(1, 2, 3)))
    with pytest.raises(VistokError, match="cannot be merged"):
        usage.merge(CodebookUsage((2, 2)))
    assert usage.tokens == 0
