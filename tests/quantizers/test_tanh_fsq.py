"""FSQ with tanh bounding: ids there and back, exactness in low precision, gradients, margins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistok.errors import ConfigError
from vistok.quantizers import FiniteScalarQuantizer

_levels = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


@given(levels=_levels, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_ids_go_there_and_back_in_any_precision(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    quantizer = FiniteScalarQuantizer(levels, bound="tanh").to(dtype)
    ids = torch.arange(math.prod(levels))[None]
    values = quantizer.lookup(ids)
    assert values.dtype == torch.float32 and quantizer.levels.dtype == torch.int64
    assert torch.equal(quantizer.ids_of(values), ids) and torch.equal(quantizer.ids_of(values.to(dtype)), ids)
    assert len(values[0].unique(dim=0)) == len(ids[0]) and float(values.min()) == -1.0
    assert float(values.max()) == 1.0 or all(level % 2 == 0 for level in levels)


@given(levels=_levels)
def test_every_level_is_reached_by_finite_latents(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels, bound="tanh")
    ids = torch.arange(math.prod(levels))[None]
    half_width, offset, shift = quantizer._tanh_terms()
    places = quantizer.lookup(ids).double() * (quantizer.levels // 2)
    latents = torch.atanh((places + offset) / half_width) - shift
    out = quantizer(latents)
    assert torch.isfinite(latents).all() and torch.equal(out.ids, ids)
    torch.testing.assert_close(out.latents, quantizer.lookup(ids), rtol=0, atol=1e-6)


@given(levels=_levels, seed=st.integers(0, 99))
def test_any_latents_give_ids_in_range_and_values_of_the_codebook(levels: tuple[int, ...], seed: int) -> None:
    quantizer = FiniteScalarQuantizer(levels, bound="tanh")
    latents = 100 ** torch.rand(2, 9, len(levels)) * torch.randn(2, 9, len(levels))
    out = quantizer(latents)
    assert 0 <= int(out.ids.min()) and int(out.ids.max()) < math.prod(levels)
    torch.testing.assert_close(out.latents, quantizer.lookup(out.ids), rtol=0, atol=1e-6)
    assert torch.equal(quantizer.ids_of(out.latents), out.ids)


def test_a_few_values_by_hand() -> None:
    quantizer = FiniteScalarQuantizer((4, 3), bound="tanh")
    assert quantizer.lookup(torch.tensor([[0, 3, 4, 11]])).tolist() == [[[-1, -1], [0.5, -1], [-1, 0], [0.5, 1]]]
    out = quantizer(torch.tensor([[[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0]]]))
    assert out.ids.tolist() == [[2 + 4, 3, 8]]


def test_gradients_pass_the_rounding_and_not_the_bound() -> None:
    quantizer = FiniteScalarQuantizer((8, 5), bound="tanh")
    latents = torch.randn(2, 5, 2, requires_grad=True)
    weights = torch.randn(2, 5, 2)
    (quantizer(latents).latents * weights).sum().backward()
    grad = latents.grad.clone()
    scaled = quantizer.bounded(latents) / torch.tensor([4, 2])
    wanted = torch.autograd.grad((scaled * weights).sum(), latents)[0]
    torch.testing.assert_close(grad, wanted)


def test_unrounded_rows_keep_their_place_between_levels() -> None:
    quantizer = FiniteScalarQuantizer((8, 5), bound="tanh")
    latents = torch.randn(3, 5, 2)
    out = quantizer(latents, unrounded=torch.tensor([False, True, False]))
    plain = quantizer(latents)
    assert torch.equal(out.ids, plain.ids) and torch.equal(out.latents[::2], plain.latents[::2])
    torch.testing.assert_close(out.latents[1], quantizer.bounded(latents)[1] / torch.tensor([4, 2]))


@pytest.mark.parametrize("bound", ["tanh", "clamp"])
def test_nothing_below_the_margin_changes_an_id(bound: str) -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 4), bound=bound)
    latents = torch.randn(4, 500, 3) * 0.4
    ids, margin = quantizer(latents).ids, quantizer.rounding_margin(latents)
    assert margin.shape == ids.shape and 0 <= float(margin.min()) and float(margin.max()) <= 0.5
    moved = quantizer(latents + 1e-3).ids != ids
    assert moved.any() and float(margin[moved].max()) < 5e-3


def test_autocast_does_not_reach_it() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 5, 5, 5), bound="tanh")
    latents = torch.randn(2, 64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(latents)
    assert torch.equal(out.ids, quantizer(latents).ids) and out.latents.dtype == torch.float32


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match="clamp or tanh"):
        FiniteScalarQuantizer((8,), bound="sigmoid")
