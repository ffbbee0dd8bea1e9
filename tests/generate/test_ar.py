"""``DigitAR``: cache, sampling, likelihood, training, saving."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vistok.config import from_dict, to_dict
from vistok.errors import ConfigError, VistokError
from vistok.generate import DigitAR, DigitARConfig, SamplingConfig
from vistok.generate.autoregressive import Rollout
from vistok.hub import from_pretrained
from vistok.tokens import Tokens

HEADS = ["digits_chain", "digits", "softmax"]
L = 8


def make(seed: int = 0, **changes: Any) -> DigitAR:
    torch.manual_seed(seed)
    config = {"codebook_size": (4, 3, 2), "num_tokens": L, "num_classes": 5, "width": 32, "depth": 2, "num_heads": 2}
    return DigitAR(DigitARConfig(**{**config, **changes})).eval()


def random_tokens(rows: int, length: int = L, seed: int = 0) -> Tokens:
    ids = torch.randint(24, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids=ids, codebook_size=(4, 3, 2))


@pytest.fixture(scope="module")
def model() -> DigitAR:
    return make()


@pytest.mark.parametrize("head", HEADS)
@settings(deadline=None, max_examples=12)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_cache_equals_no_cache(head, chunks, rows, seed):
    """Read in chunks of any size, the states are those of one pass without a cache."""
    model = make(seed, head=head)
    ids = random_tokens(rows, seed=seed).ids[:, : min(sum(chunks), L - 1)]
    labels = torch.randint(-1, 5, (rows,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        full = model._hidden(model.code.split(torch.cat([ids, ids[:, :1]], dim=1)), labels)
        cache = model.new_cache(rows)
        states = [model.read_condition(labels, cache)[:, None]]
        start = 0
        for size in chunks:
            part = ids[:, start : start + size]
            if part.shape[1]:
                states.append(model.read_tokens(part, start, cache))
            start += size
    torch.testing.assert_close(torch.cat(states, dim=1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_log_probs_of_generation_are_those_of_the_model(head, cfg_scale):
    model = make(head=head)
    result = model.generate([0, 3], 3, seeds=1, cfg_scale=cfg_scale, top_k=2, return_log_probs=True)
    labels = [0, 0, 0, 3, 3, 3]
    torch.testing.assert_close(result.log_probs, model.token_log_probs(result.tokens, labels), atol=1e-5, rtol=1e-5)
    assert bool((result.draw_log_probs >= result.log_probs - 1e-5).any())
    torch.testing.assert_close(model.log_prob(result.tokens, labels), result.log_probs.sum(-1), atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True))
def test_an_image_is_the_same_in_any_batch(rows):
    model = make()
    classes = [row % 5 for row in range(12)]
    seeds = [1000 + row for row in range(12)]
    everything = model.generate(classes, seeds=seeds, cfg_scale=1.5).tokens
    part = model.generate([classes[row] for row in rows], seeds=[seeds[row] for row in rows], cfg_scale=1.5).tokens
    assert torch.equal(part.ids, everything.ids[rows])


@pytest.mark.parametrize("k", [1, 3, L])
def test_the_first_k_tokens_are_those_of_the_whole(model, k):
    whole = model.generate(2, 4, seeds=5).tokens
    short = model.generate(2, 4, seeds=5, length=k).tokens
    assert short == whole.truncate(k)
    assert short.lengths.tolist() == [k] * 4


def test_a_prefix_is_continued_as_if_it_had_been_drawn(model):
    whole = model.generate([1, 4], seeds=[8, 9], return_log_probs=True, cfg_scale=2.0)
    for length in (1, 5, L):
        prefix = whole.tokens.truncate(length)
        again = model.generate([1, 4], prefix=prefix, seeds=[8, 9], return_log_probs=True, cfg_scale=2.0)
        assert again.tokens == whole.tokens
        torch.testing.assert_close(again.log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)


def test_greedy_is_the_best_token_at_every_place():
    model = make(head="softmax")
    tokens = model.generate(1, temperature=0).tokens
    with torch.no_grad():
        digits = model.code.split(tokens.ids)
        best = model.head(model._hidden(digits, torch.tensor([1])), digits).argmax(-1)[..., 0]
    assert torch.equal(best, tokens.ids)


def test_guidance_of_one_is_off_and_zero_is_unconditional(model):
    assert model.generate(2, 5, seeds=3, cfg_scale=1.0).tokens == model.generate(2, 5, seeds=3).tokens
    assert model.generate(2, 5, seeds=3, cfg_scale=0.0).tokens == model.generate(None, 5, seeds=3).tokens


def test_generation_counts_its_forwards_and_shares_the_condition(model):
    read = []
    hook = model.blocks[0].register_forward_hook(lambda _, args, __: read.append(args[0].shape[0] * args[0].shape[1]))
    plain = model.generate([0, 1], 3, seeds=0)
    assert plain.token_forwards == sum(read) == 2 + 6 * (L - 1)
    read.clear()
    guided = model.generate([0, 1], 3, seeds=0, cfg_scale=2.0, length=4)
    assert guided.token_forwards == sum(read) == 2 * (2 + 6 * 3)
    hook.remove()


def test_rollout_branches_and_reorders_without_reading_again(model):
    sampling = SamplingConfig(cfg_scale=1.7)
    rollout = Rollout(model, torch.tensor([0, 1, 2]), sampling)
    noise = model.token_noise([1, 2, 3])
    rollout.extend(4, noise)
    rows = torch.tensor([2, 0, 2, 1])
    rollout.select(rows)
    forwards = rollout.token_forwards
    rollout.extend(L - 4, noise[rows])
    assert rollout.token_forwards - forwards == 2 * 4 * (L - 4)
    expected = model.generate([0, 1, 2], seeds=[1, 2, 3], cfg_scale=1.7).tokens
    assert torch.equal(rollout.ids, expected.ids[rows])


def test_generate_leaves_mode_and_global_random_state_alone():
    model = make(dropout=0.5)
    model.train()
    model.blocks[0].eval()
    state = torch.get_rng_state()
    first = model.generate(1, 2, seeds=4).tokens
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    assert model.eval().generate(1, 2, seeds=4).tokens == first


def test_a_torch_generator_gives_new_rows_each_time(model):
    generator = torch.Generator().manual_seed(0)
    one, two = (model.generate(0, 2, generator=generator).tokens for _ in range(2))
    assert one != two
    assert model.generate(0, 2, generator=torch.Generator().manual_seed(0)).tokens == one


def test_class_names(model):
    named = make(class_names=("cat", "dog", "bird", "fish", "bee"))
    assert named.generate("dog", 2, seeds=1).tokens == model.generate(1, 2, seeds=1).tokens
    with pytest.raises(VistokError, match="did you mean bird"):
        named.generate("birb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": 5}, "classes 0 to 4"),
        ({"condition": [0.5]}, "numbers or names"),
        ({"condition": []}, "empty list"),
        ({"condition": 0, "num": 0}, "1 or more"),
        ({"condition": 0, "length": L + 1}, f"1 to {L}"),
        ({"condition": 0, "seeds": [1, 2]}, "1 rows want 1 seeds"),
        ({"condition": 0, "topk": 2}, "top_k"),
        ({"condition": 0, "prefix": random_tokens(2, 3)}, "one row for each of 1"),
        ({"condition": 0, "prefix": Tokens(ids=torch.zeros(1, 2).long(), codebook_size=7)}, "codebook"),
    ],
)
def test_bad_input(model, arguments, message):
    with pytest.raises(VistokError, match=message):
        model.generate(**arguments)


def test_guidance_wants_a_model_trained_for_it():
    for changes in ({"class_dropout": 0.0}, {"num_classes": 0}):
        with pytest.raises(VistokError, match="not trained for guidance"):
            make(**changes).generate(None, cfg_scale=2.0)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_mean_negative_log_likelihood(head):
    model = make(head=head)
    tokens = random_tokens(4).truncate([8, 1, 5, 3])
    labels = torch.tensor([0, 1, -1, 4])
    out = model(tokens.ids, labels, lengths=tokens.lengths)
    expected = -model.log_prob(tokens, labels).sum() / tokens.lengths.sum()
    torch.testing.assert_close(out["loss"], expected)
    assert out["nll_per_token"] == out["loss"] and not out["nll_per_token"].requires_grad


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_all_parameters(head):
    model = make(head=head).train()
    model(random_tokens(64).ids, torch.arange(64) % 5)["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_gradient_checkpointing_changes_nothing():
    model = make().train()
    ids, seeds = random_tokens(4).ids, torch.arange(4)
    losses = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        loss = model(ids, torch.arange(4), sample_seeds=seeds)["loss"]
        loss.backward()
        losses.append((loss.detach(), model.pos_embed.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])


def test_hidden_classes_are_a_function_of_the_sample_seed():
    model = make(class_dropout=0.3).train()
    ids, labels, seeds = random_tokens(1).ids.expand(400, -1), torch.zeros(400).long(), torch.arange(400) * 7919
    hidden = []
    model.class_embed.register_forward_hook(lambda _, args, __: hidden.append(args[0] == 5))
    with torch.no_grad():
        model(ids, labels, sample_seeds=seeds)
        model(ids[:100], labels[:100], sample_seeds=seeds[300:])
        model.eval()(ids, labels, sample_seeds=seeds)
    assert torch.equal(hidden[0][300:], hidden[1])
    assert 0.2 < hidden[0].double().mean() < 0.4
    assert not hidden[2].any()


def test_it_learns():
    """Rows with a rule: each class has its own first token, and every token is the one before plus three."""
    model = make(num_classes=4, class_dropout=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = torch.arange(32) % 4
    ids = (labels[:, None] * 5 + 3 * torch.arange(L)) % 24
    for _ in range(60):
        loss = model(ids, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * math.log(24)
    assert torch.equal(model.eval().generate([0, 1, 2, 3], temperature=0).tokens.ids, ids[:4])


def test_save_and_load(tmp_path):
    model = make(
        sampling=SamplingConfig(temperature=0.8, top_k=3),
        class_names=("a", "b", "c", "d", "e"),
        tokenizer_family="titok",
        tokenizer_hash="0123456789abcdef",
    )
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, DigitAR) and loaded.config == model.config
    result = loaded.generate("b", 3, seeds=0)
    assert result.tokens == model.generate("b", 3, seeds=0).tokens
    assert result.tokens == model.generate("b", 3, seeds=0, temperature=0.8, top_k=3).tokens
    assert (result.tokens.family, result.tokens.weight_hash) == ("titok", "0123456789abcdef")


def test_config_from_plain_data():
    config = DigitARConfig(codebook_size=(8, 8), sampling=SamplingConfig(top_p=0.9))
    assert from_dict(DigitARConfig, to_dict(config)) == config
    assert DigitARConfig(codebook_size=(8, 8), head="softmax").factors == (64,)
    assert DigitARConfig(codebook_size=100).factors == (100,)
    for bad in ({"width": 30}, {"class_names": ("a",)}, {"codebook_size": ()}, {"dropout": 1.0}, {"depth": 0}):
        with pytest.raises(ConfigError):
            DigitARConfig(**bad)


def test_bf16_generates(model):
    tokens = make().to(torch.bfloat16).generate([0, 1], 2, seeds=0, cfg_scale=2.0).tokens
    assert tokens.ids.shape == (4, L) and int(tokens.ids.max()) < 24


def test_key_names_are_frozen(model):
    blocks = {
        f"blocks.{block}.{part}.{kind}"
        for block in range(2)
        for part in ("norm1", "qkv", "proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    rest = {"class_embed.weight", "token_embed.table.weight", "pos_embed", "norm.weight", "norm.bias"}
    head = {"head.earlier.table.weight", "head.hidden_weight", "head.hidden_bias", "head.out_weight", "head.out_bias"}
    assert set(model.state_dict()) == blocks | rest | head
    assert isinstance(model.blocks, nn.ModuleList)


CAPTIONS = ["red heart", "Smiling cat-face", "a blue heart", "crying face"]


def texts_model() -> DigitAR:
    torch.manual_seed(0)
    facts = DigitAR.data_facts({"max_words": 6}, CAPTIONS)
    assert facts["words"][:2] == ("heart", "face") and len(facts["words"]) == 6
    size = {"width": 32, "depth": 1, "num_heads": 2, "num_tokens": 6, "num_classes": 3}
    return DigitAR(DigitARConfig(class_names=("hearts", "cats", "tears"), max_words=6, **facts, **size)).eval()


def test_texts_are_bags_of_known_words(caplog: pytest.LogCaptureFixture) -> None:
    model = texts_model()
    with caplog.at_level(logging.WARNING):
        rows = model.encode_condition(["heart", "face heart, unheard-of", "cats", 2, None])
        model.encode_condition("heart unheard")
    assert [record.message.split(": ")[1] for record in caplog.records] == ["unheard, of"]  # once
    assert rows[:, 0].tolist() == [-1, -1, 1, 2, -1]
    numbers = {word: number for number, word in enumerate(model.config.words)}
    assert rows[0, 1:3].tolist() == [numbers["heart"], -1]
    assert rows[1, 1:4].tolist() == [numbers["face"], numbers["heart"], -1]
    assert (rows[2:, 1:] == -1).all()
    seeds = [1, 2, 3]
    first = model.generate(["heart face", "cats", None], seeds=seeds).tokens
    alone = model.generate(["face heart"], seeds=[1]).tokens  # the order of words means nothing
    assert first[0] == alone
    assert model.encode_condition(torch.tensor([0, -1])).shape == rows[:2].shape
    with pytest.raises(VistokError, match="knows no word of 'zebra'"):
        model.encode_condition("zebra")


def test_training_shows_a_class_or_a_text_and_now_and_then_nothing() -> None:
    model = texts_model().train()
    batch = {"label": torch.tensor([0, 1, 0, 2]).repeat(500), "caption": CAPTIONS * 500}
    condition = model.training_condition(batch)
    seeds = torch.arange(2000) * 7919
    shown = model._hide(condition, seeds)
    has_class, has_text = shown[:, 0] >= 0, (shown[:, 1:] >= 0).any(dim=1)
    assert not bool((has_class & has_text).any())
    assert float((~has_class & ~has_text).double().mean()) == pytest.approx(0.1, abs=0.03)
    assert float(has_text.double().mean()) == pytest.approx(0.45, abs=0.05)
    torch.testing.assert_close(model._hide(condition[5:9], seeds[5:9]), shown[5:9])
    model.config = replace(model.config, text_share=0.8)
    share = (model._hide(condition, seeds)[:, 1:] >= 0).any(dim=1).double().mean()
    assert float(share) == pytest.approx(0.72, abs=0.05)
    ids = torch.zeros(2000, 6, dtype=torch.int64)
    model(ids, condition, sample_seeds=seeds)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_without_words_refuses_them() -> None:
    with pytest.raises(ConfigError, match="max_words"):
        DigitARConfig(words=("heart",))
    with pytest.raises(ConfigError, match="text_share"):
        DigitARConfig(text_share=1.5)


def test_an_unconditional_model_reads_no_labels_of_the_data() -> None:
    model = DigitAR(DigitARConfig(num_classes=0, width=16, depth=1, num_heads=2, num_tokens=4, codebook_size=(2, 2)))
    batch = {"label": torch.tensor([3, 0]), "caption": ["a", "b"]}
    ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert torch.equal(model(ids, model.training_condition(batch))["loss"], model(ids)["loss"])
    assert model.generate(model.sampling_condition(batch), seeds=[1, 2]).tokens.ids.shape == (2, 4)
