"""Tokens as digits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.generate.digits import DigitCode, DigitHead
from vistok.generate.sampling import SamplingConfig
from vistok.quantizers.fsq import FiniteScalarQuantizer


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_split_and_join_are_inverse(levels):
    code = DigitCode(levels)
    ids = torch.arange(code.vocab_size)
    digits = code.split(ids)
    assert torch.equal(code.join(digits), ids)
    assert bool((digits < code.levels).all())


def test_digits_are_those_of_the_quantizer():
    quantizer, code = FiniteScalarQuantizer((8, 5, 3)), DigitCode((8, 5, 3))
    ids = torch.arange(120)
    values = (quantizer.lookup(ids[None])[0] + 1) / 2 * (quantizer.levels - 1)
    assert torch.equal(code.split(ids), values.round().long())


def make_head(levels: tuple[int, ...], *, autoregressive: bool) -> DigitHead:
    torch.manual_seed(0)
    head = DigitHead(DigitCode(levels), 16, autoregressive=autoregressive)
    head.init_weights()
    return head


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("levels", [(3, 4, 2), (5, 5)])
def test_probabilities_of_all_tokens_sum_to_one(levels, autoregressive):
    head = make_head(levels, autoregressive=autoregressive)
    digits = torch.tensor(list(itertools.product(*map(range, levels))))
    hidden = torch.randn(1, 16).expand(len(digits), -1)
    log_probs = head(hidden, digits).log_softmax(-1).gather(-1, digits[..., None])[..., 0].sum(-1)
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("autoregressive", [False, True])
def test_drawn_tokens_have_the_log_probabilities_of_the_teacher_forced_head(autoregressive):
    head = make_head((3, 4, 2), autoregressive=autoregressive)
    hidden = torch.randn(500, 16)
    drawn = head.sample(hidden, torch.rand(500, 3), SamplingConfig(temperature=1.5, top_k=3))
    digits = head.code.split(drawn.indices)
    expected = head(hidden, digits).log_softmax(-1).gather(-1, digits[..., None])[..., 0].sum(-1)
    torch.testing.assert_close(drawn.log_probs, expected, atol=1e-5, rtol=1e-5)
    assert int(drawn.indices.max()) < 24


def test_the_chain_sees_earlier_digits_and_no_later_ones():
    head = make_head((4, 4, 4), autoregressive=True)
    hidden, digits = torch.randn(1, 16), torch.tensor([[1, 2, 3]])
    base = head(hidden, digits)
    for place in range(3):
        changed = digits.clone()
        changed[0, place] = 0
        differs = (head(hidden, changed) != base).any(dim=-1)[0]
        assert differs.tolist() == [later > place for later in range(3)]


def test_draws_follow_the_chain():
    head = make_head((2, 3), autoregressive=True)
    hidden = torch.randn(1, 16)
    every = torch.tensor(list(itertools.product(range(2), range(3))))
    probs = head(hidden.expand(6, -1), every).log_softmax(-1).gather(-1, every[..., None])[..., 0].sum(-1).exp()
    expected = torch.zeros(6).index_copy(0, head.code.join(every), probs)
    drawn = head.sample(hidden.expand(20000, -1), torch.rand(20000, 2), SamplingConfig())
    torch.testing.assert_close(drawn.indices.bincount(minlength=6) / 20000, expected, atol=0.015, rtol=0)
