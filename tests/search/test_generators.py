"""Search with every kind of generator: those that write in order branch, the others draw whole candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import BASE
from torch import Tensor

from vistok.errors import VistokError
from vistok.generate import DigitAR, DigitARConfig
from vistok.generate.flexar import FlexAR, FlexARConfig, TextConfig
from vistok.generate.flexar_blocks import AttentionConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.maskgen import MaskGen, MaskGenConfig
from vistok.generate.maskgit import MaskGit, MaskGitConfig
from vistok.generate.rar import Rar, RarConfig
from vistok.generate.text import TextCondition
from vistok.models.titok import TiTok
from vistok.search import search
from vistok.seeds import stable_seed

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "num_heads": 2}
CLASSES: dict[str, Any] = {"num_tokens": 6, "num_classes": 5, **SIZES}
GIT = {**CLASSES, "codebook_size": 50, "hidden_width": 48}
WRITING = {
    "digits_chain": (DigitAR, DigitARConfig(codebook_size=(4, 3, 5, 2), **CLASSES)),
    "digits": (DigitAR, DigitARConfig(codebook_size=(4, 3, 5, 2), head="digits", **CLASSES)),
    "softmax": (DigitAR, DigitARConfig(codebook_size=(4, 3, 5, 2), head="softmax", **CLASSES)),
    "gpt": (Gpt, GptConfig(codebook_size=50, init="local", **CLASSES)),
    "rar": (Rar, RarConfig(hidden_width=48, codebook_size=50, **CLASSES)),
    "flexar": (
        FlexAR,
        FlexARConfig(
            codebook_size=50, num_tokens=6, num_classes=5, width=32, depth=2, attention=AttentionConfig(num_heads=2)
        ),
    ),
}
CAPTIONED = {
    "flexar_text": (
        FlexAR,
        FlexARConfig(
            codebook_size=50,
            num_tokens=6,
            width=32,
            depth=2,
            attention=AttentionConfig(num_heads=2),
            text=TextConfig(width=16, length=6),
            reading=AttentionConfig(num_heads=2),
        ),
    )
}
FILLING = {
    "maskgit": (MaskGit, MaskGitConfig(**GIT)),
    "maskgen_kl": (
        MaskGen,
        MaskGenConfig(
            kind="kl",
            codebook_size=None,
            num_tokens=6,
            code_dim=4,
            head_width=16,
            head_depth=1,
            text_dim=64,
            micro_dim=8,
            text_tower="tiny",
            **SIZES,
        ),
    ),
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    family, config = {**WRITING, **FILLING, **CAPTIONED}[kind]
    model = family(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokenizer_of(model: Any) -> TiTok:
    torch.manual_seed(0)
    if model.continuous:
        return TiTok(replace(BASE, quantizer="gaussian", tail_drop="uniform")).eval()
    if isinstance(model.codebook_size, tuple):
        return TiTok(replace(BASE, quantizer="fsq", levels=(4, 3, 5, 2), tail_drop="uniform")).eval()
    return TiTok(replace(BASE, tail_drop="uniform")).eval()


def redness(images: Tensor, condition: list[Any]) -> Tensor:
    return images[:, 0].mean(dim=(1, 2))


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize("kind", WRITING)
def test_branches_are_those_of_the_model(kind: str, cfg_scale: float, sample: bool):
    model = make(kind)
    options = {"seeds": [1, 2], "cfg_scale": cfg_scale, "sample": sample, "token_schedule": (2, 4, 6)}
    plain = model.generate([1, 3], seeds=[1, 2], cfg_scale=cfg_scale, **({} if sample else {"temperature": 0.0}))
    one = search(model, None, [1, 3], method="beam", beam_width=1, candidates_per_beam=1, **options)
    assert one.tokens == plain.tokens
    for branch_at in ("last", "step"):
        result = search(
            model,
            tokenizer_of(model),
            [1, 3],
            method="lookahead",
            verifier=redness,
            beam_width=2,
            candidates_per_beam=3,
            branch_at=branch_at,
            **options,
        )
        found = result.history[0].tokens.ids.view(2, 3, 2)
        assert torch.equal(found[:, 0], plain.tokens.ids[:, :2]) or (not sample and len(model.token_factors) > 1)
        at = 1 if branch_at == "last" else 0
        assert all(len(set(rows[:, at].tolist())) == 3 for rows in found)
    torch.testing.assert_close(one.scores, model.log_prob(one.tokens, [1, 3]).double(), atol=1e-3, rtol=0)


def test_features_of_captions_are_one_condition_each():
    model = make("flexar_text")
    drawn = torch.Generator().manual_seed(1)
    features = TextCondition(
        torch.randn(2, 4, 16, generator=drawn),
        torch.tensor([[True] * 4, [True, True, False, False]]),
        torch.randn(1, 2, 16, generator=drawn),
        torch.ones(1, 2, dtype=torch.bool),
    )
    options = {"seeds": [1, 2], "cfg_scale": 2.0}
    found = search(model, None, features, budget=3, **options)
    assert (
        found.tokens
        == search(model, None, [features[torch.tensor([row])] for row in range(2)], budget=3, **options).tokens
    )
    assert search(model, None, features, budget=1, **options).tokens == model.generate(features, **options).tokens


@pytest.mark.parametrize("kind", ["digits_chain", "digits"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 2}, {"cfg_scale": 3.0}])
def test_the_probabilities_of_whole_tokens_are_those_of_their_digits(kind: str, options: dict[str, float]):
    model = make(kind)
    sampling = model.sampling.updated(**options)
    rollout = model.start([1, 3], sampling=sampling)
    drawn = rollout.draw_next(torch.rand(2, 40, model.draws_per_token))
    for row in range(2):
        for branch in range(0, 40, 7):
            alone = model.start([(1, 3)[row]], sampling=sampling)
            hidden, null = alone._split(alone._next_hidden())
            wanted = model.score_tokens(hidden[:, None], drawn.indices[row, branch].view(1, 1))
            torch.testing.assert_close(drawn.log_probs[row, branch], wanted[0, 0], atol=1e-5, rtol=0)
    _, spread = model._spread_ids(*rollout._split(rollout._next_hidden()), sampling)
    torch.testing.assert_close(spread.exp().sum(dim=1), torch.ones(2))
    torch.testing.assert_close(spread.gather(1, drawn.indices), drawn.draw_log_probs, atol=1e-5, rtol=0)
    # Whole tokens drawn digit by digit have the same frequencies.
    hidden, null = rollout._split(rollout._next_hidden())
    many = torch.rand(20000, model.draws_per_token, generator=torch.Generator().manual_seed(0))
    by_digit = model.draw_tokens(
        hidden[:1].expand(20000, -1), many, sampling, null_hidden=None if null is None else null[:1].expand(20000, -1)
    )
    shares = torch.bincount(by_digit.indices, minlength=120) / 20000
    torch.testing.assert_close(shares, spread[0].exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", FILLING)
def test_generators_without_an_order_draw_whole_candidates(kind: str):
    model = make(kind)
    tokenizer = tokenizer_of(model)
    conditions = ["a cat", "a dog"] if kind == "maskgen_kl" else [1, 3]
    few, many = (search(model, tokenizer, conditions, verifier=redness, budget=n, seeds=[1, 2]) for n in (2, 5))
    assert bool((many.scores >= few.scores - 1e-5).all()) and few.cost.verifier_calls == 4
    plain = model.generate(conditions, seeds=[1, 2]).tokens
    first = search(model, tokenizer, conditions, verifier=redness, budget=1, seeds=[1, 2]).tokens
    if model.continuous:
        torch.testing.assert_close(first.latents, plain.latents, atol=1e-4, rtol=1e-4)
    else:
        assert first == plain
    with pytest.raises(VistokError, match="does not write tokens in order"):
        search(model, tokenizer, conditions, method="beam", verifier=redness)


def test_seeds_of_steps_do_not_repeat_those_of_rows():
    assert len({stable_seed(seed, *more) for seed in (1, 2) for more in ((1,), ("branches", 1), ("decode",))}) == 6
