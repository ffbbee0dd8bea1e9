"""Generation on a CUDA device: as on the CPU, and as replayed graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_masked
import test_softmax
import torch
from test_softmax import KINDS, L, conditions
from tiny_models import make as make_tokenizer
from torch._dynamo.utils import counters

from vistok.generate import Gpt, GptConfig, LearnedPrior
from vistok.generate.sample_set import SamplePlan, first_images, write_samples

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_products() -> Any:
    """Products of fp32 in fp32, as on the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_tokens_are_those_of_the_cpu(kind: str) -> None:
    """Seeds give the same numbers on every device; log-probabilities differ by their rounding."""
    model = test_softmax.make(kind)
    condition = conditions(model, 4)
    here = model.generate(condition, seeds=[1, 2, 3, 4], cfg_scale=2.0, return_log_probs=True)
    there = model.to(DEVICE).generate(condition, seeds=[1, 2, 3, 4], cfg_scale=2.0, return_log_probs=True)
    assert torch.equal(there.tokens.ids.cpu(), here.tokens.ids)
    torch.testing.assert_close(there.log_probs.cpu(), here.log_probs, atol=1e-4, rtol=1e-4)
    assert model.new_cache(1).static


def test_compiled_steps_are_replayed_graphs(kind: str) -> None:
    """Nothing is left out of the graphs, and they give the same tokens, rollout after rollout."""
    model = test_softmax.make(kind).to(DEVICE)
    condition = model.encode_condition(conditions(model, 4))
    options = {"seeds": [1, 2, 3, 4], "cfg_scale": 2.0}
    plain = model.generate(condition, **options).tokens
    counters.clear()
    model.compile_steps()
    for _ in range(4):  # warmed up, recorded, replayed
        assert model.generate(condition, **options).tokens == plain
    assert counters["inductor"]["cudagraph_skips"] == 0
    noise = model.token_noise([5, 6, 7, 8])
    first = model.start(condition)
    first.extend(2, noise)
    first.draw_next(noise[:, 2:3])
    second = first.copy()
    second.extend(L - 2, noise.flip(0))
    first.extend(L - 2, noise)
    assert torch.equal(first.ids, model.generate(condition, seeds=[5, 6, 7, 8]).tokens.ids)


@pytest.mark.parametrize("kind", sorted(test_masked.KINDS))
def test_filled_tokens_are_those_of_the_cpu(kind: str) -> None:
    model = test_masked.make(kind)
    condition = test_masked.conditions(model, 3)
    here = test_masked.made(model.generate(condition, seeds=[1, 2, 3]))
    there = test_masked.made(model.to(DEVICE).generate(condition, seeds=[1, 2, 3])).cpu()
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)


def test_half_precision_and_graphs_make_a_set_of_images(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("fsq_ordered").to(DEVICE)
    size = {"codebook_size": tokenizer.codebook_size, "num_tokens": 6, "num_classes": 3, "width": 32, "depth": 2}
    model = Gpt(GptConfig(**size, num_heads=2, init="local")).eval().to(DEVICE, torch.bfloat16)
    model.compile_steps()
    plan = SamplePlan(num=10, conditions=(0, 1, 2), labels=(0, 1, 2))
    write_samples(model, tokenizer, plan, tmp_path, batch_size=4, progress=False, cfg_scale=1.5)
    assert first_images(tmp_path, 10).shape == (10, 3, 32, 32)
    assert LearnedPrior(model).generator.device.type == "cpu"
