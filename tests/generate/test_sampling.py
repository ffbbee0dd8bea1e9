"""Filters, draws and seeds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import ConfigError, VistokError
from vistok.generate.sampling import (
    SamplingConfig,
    draw,
    filter_logits,
    row_noise,
    row_seeds,
    sample_logits,
    sample_several,
)

logit_rows = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12).map(torch.tensor)


@settings(deadline=None, max_examples=60)
@given(
    logits=logit_rows,
    top_k=st.integers(0, 13),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 0.99),
    temperature=st.floats(0.1, 5.0),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_filters_keep_the_best_and_draws_keep_to_the_filters(logits, top_k, top_p, min_p, temperature, uniform):
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    filtered = filter_logits(logits, sampling)
    kept = filtered.isfinite()
    assert kept[logits.argmax()]
    assert logits[kept].min() >= logits[~kept].max() if (~kept).any() else True
    torch.testing.assert_close(filtered[kept], logits[kept] / temperature)
    assert kept[draw(filtered, torch.tensor(uniform))]


def test_top_k_keeps_ties_and_top_p_keeps_the_token_that_crosses():
    logits = torch.tensor([2.0, 2.0, 1.0, 0.0])
    assert filter_logits(logits, SamplingConfig(top_k=1)).isfinite().tolist() == [True, True, False, False]
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert filter_logits(probs, SamplingConfig(top_p=0.6)).isfinite().tolist() == [True, True, False, False]
    assert filter_logits(probs, SamplingConfig(min_p=0.2)).isfinite().tolist() == [True, True, True, False]


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 0.6, 0.0, 0.3]).log()  # the third is impossible
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    counts = draw(logits.expand(20000, 4), uniforms).bincount(minlength=4) / 20000
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.6, 0.0, 0.3]), atol=0.015, rtol=0)
    assert draw(logits, torch.tensor(1.0 - 2**-24)) == 3
    assert draw(torch.tensor([float("-inf"), 0.0]), torch.tensor(0.0)) == 1


def test_greedy_takes_the_best_of_the_guided_logits():
    logits, null = torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    plain = sample_logits(logits, torch.zeros(1), SamplingConfig(temperature=0.0))
    guided = sample_logits(logits, torch.zeros(1), SamplingConfig(temperature=0.0, cfg_scale=3.0), null_logits=null)
    assert plain.indices.item() == 0
    assert guided.indices.item() == 1
    torch.testing.assert_close(guided.log_probs, logits.log_softmax(-1)[:, 1])
    torch.testing.assert_close(guided.draw_log_probs, (null + 3 * (logits - null)).log_softmax(-1)[:, 1])


def test_guidance_leaves_impossible_entries_impossible():
    logits = torch.tensor([0.0, float("-inf")])
    drawn = sample_logits(logits, torch.tensor(0.99), SamplingConfig(cfg_scale=2.0), null_logits=logits)
    assert drawn.indices == 0
    assert drawn.draw_log_probs == 0


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=6))
def test_noise_of_a_row_is_a_function_of_its_seed(seeds):
    noise = row_noise(seeds, (5, 3))
    assert noise.shape == (len(seeds), 5, 3)
    for row, seed in enumerate(seeds):
        assert torch.equal(noise[row], row_noise([seed], (5, 3))[0])
    assert float(noise.min()) >= 0 and float(noise.max()) < 1


def test_seeds():
    assert row_seeds(3, [1, 2, 3]) == row_seeds(3, torch.tensor([1, 2, 3])) == [1, 2, 3]
    assert row_seeds(5, 7)[:2] == row_seeds(2, 7)  # one number stands for as many rows as there are
    generator = torch.Generator().manual_seed(0)
    assert row_seeds(4, generator=generator) != row_seeds(4, generator=generator)
    for bad in ({"seeds": [1]}, {"seeds": [1, 2**64]}, {"seeds": 1, "generator": generator}):
        with pytest.raises(VistokError):
            row_seeds(2, **bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 1},
        {"temperature": float("nan")},
        {"cfg_scale": float("inf")},
    ],
)
def test_values_out_of_range(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingConfig(**bad)


def test_updated_ignores_none_and_names_unknown_options():
    assert SamplingConfig(top_k=3).updated(top_k=None, top_p=0.5) == SamplingConfig(top_k=3, top_p=0.5)
    with pytest.raises(VistokError, match="did you mean temperature"):
        SamplingConfig().updated(temprature=1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [5.0, 5.0, 5.0]),
        ("linear", [1.0, 3.0, 5.0]),
        ("linear_down", [5.0, 3.0, 1.0]),
        ("triangular", [1.0, 5.0, 1.0]),
        ("power_cosine", [1.0, 3.0, 5.0]),
        ("flipped_cosine", [3.0, 1.0, -1.0]),
    ],
)
def test_guidance_schedules_at_their_start_middle_and_end(schedule: str, expected: list[float]) -> None:
    settings = SamplingConfig(cfg_scale=5.0, cfg_schedule=schedule)
    assert [settings.scale_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(expected, abs=1e-9)


def test_guidance_keeps_to_its_window_and_starts_from_its_floor() -> None:
    window = SamplingConfig(cfg_scale=4.0, cfg_start=0.2, cfg_end=0.5)
    assert [window.scale_at(progress) for progress in (0.1, 0.2, 0.5, 0.6)] == [1.0, 4.0, 4.0, 1.0]
    assert SamplingConfig(cfg_scale=13.0, cfg_schedule="power_cosine", cfg_floor=2.0).scale_at(0.0) == 2.0
    assert SamplingConfig(cfg_scale=13.0, cfg_schedule="power_cosine", cfg_power=3.0).scale_at(0.5) < 2.0
    assert window.at(0.3) == SamplingConfig(cfg_scale=4.0) and not window.at(0.9).guided
    steady = SamplingConfig(cfg_scale=4.0, cfg_floor=3.0)
    assert steady.at(0.3) is steady


def test_a_schedule_that_only_ends_or_begins_at_1_is_guided() -> None:
    falling = SamplingConfig(cfg_scale=1.0, cfg_schedule="linear", cfg_floor=2.0)  # from 2 to 1
    assert falling.guided and falling.at(0.0).guided and falling.at(0.5).cfg_scale == 1.5
    assert SamplingConfig(cfg_start=0.5, cfg_floor=3.0).guided
    assert not SamplingConfig(cfg_floor=2.0).guided and not SamplingConfig(cfg_schedule="linear").guided
    moment = SamplingConfig(cfg_scale=5.0, cfg_schedule="linear", cfg_floor=2.0).at(0.5)
    assert moment == SamplingConfig(cfg_scale=3.5)


@pytest.mark.parametrize("bad", [{"cfg_schedule": "cosin"}, {"cfg_end": 1.5}, {"cfg_start": 0.5, "cfg_end": 0.4}])
def test_bad_guidance_schedules_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="cfg_"):
        SamplingConfig(**bad)


@pytest.mark.parametrize("replacement", [True, False])
def test_several_draws_follow_the_distribution(replacement):
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    uniforms = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0))
    drawn = sample_several(logits, uniforms, SamplingConfig(), replacement=replacement)
    pairs = drawn.indices[:, 0] * 3 + drawn.indices[:, 1]
    share = torch.bincount(pairs, minlength=9).view(3, 3) / 20000
    first = torch.tensor([0.5, 0.3, 0.2])
    expected = first[:, None] * first
    if not replacement:
        expected = (first[:, None] * first / (1 - first[:, None])).fill_diagonal_(0.0)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0.0)
    torch.testing.assert_close(drawn.draw_log_probs, logits.gather(1, drawn.indices), atol=1e-5, rtol=1e-5)


def test_several_greedy_draws_are_the_best_ones_best_first():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    drawn = sample_several(logits, torch.zeros(1, 3), SamplingConfig(temperature=0.0), replacement=True)
    assert drawn.indices.tolist() == [[1, 3, 2]]
    guided = sample_several(
        logits, torch.zeros(1, 2), SamplingConfig(temperature=0.0, cfg_scale=0.0), null_logits=-logits
    )
    assert guided.indices.tolist() == [[0, 2]]


def test_more_different_draws_than_are_left_are_refused():
    with pytest.raises(VistokError, match="fewer than the 3"):
        sample_several(
            torch.zeros(1, 5).cumsum(1) + torch.arange(5), torch.rand(1, 3), SamplingConfig(top_k=2), replacement=False
        )
