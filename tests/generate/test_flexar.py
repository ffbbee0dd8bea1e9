"""What only ``FlexAR`` has: captions, the configuration tree, tables of positions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make as tiny_tokenizer

from vistok.config import from_dict, to_dict
from vistok.convert import recognise
from vistok.errors import MissingExtraError, PublishedConfigError, VistokError
from vistok.generate import TextCondition
from vistok.generate.flexar import FlexAR, FlexARConfig, TextConfig
from vistok.generate.flexar_blocks import AttentionConfig, NormConfig
from vistok.generate.text import T5Features
from vistok.hub import convert_state, from_pretrained, to_published
from vistok.models.base import key_report
from vistok.tokens import Tokens
from vistok.training import TrainConfig, train
from vistok.training.token_data import open_tokens

WORDS = 16
TINY = {"codebook_size": 24, "num_tokens": 8, "width": 32, "depth": 2, "attention": AttentionConfig(num_heads=2)}


def make(**changes: Any) -> FlexAR:
    torch.manual_seed(0)
    text = {"text": TextConfig(width=WORDS, length=6), "reading": AttentionConfig(num_heads=2)}
    return FlexAR(FlexARConfig(**{**TINY, **text, **changes})).eval()


def tokenize(captions: list[str], *, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
    """A letter a token, as transformers' tokenizers are called; 1 ends a caption."""
    rows = [[*(2 + ord(letter) % 30 for letter in caption[: max_length - 1]), 1] for caption in captions]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def features() -> T5Features:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.T5Config(vocab_size=40, d_model=WORDS, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5Features(transformers.T5EncoderModel(config), tokenize, max_length=6)


def test_captions_are_read_by_the_text_encoder_and_are_no_weights():
    model = make()
    before = set(model.state_dict())
    model.text_encoder = features()
    both = model.generate(["a dog", "the sea at night"], seeds=[1, 2], cfg_scale=2.0).tokens
    one = model.generate("the sea at night", seeds=[2], cfg_scale=2.0).tokens  # alone, and so padded to less
    assert torch.equal(both.ids[1:], one.ids) and not torch.equal(both.ids[:1], one.ids)
    assert set(model.state_dict()) == before
    assert model.generate(None, 2, seeds=0).tokens == model.generate("", 2, seeds=0).tokens


def test_every_caption_is_read_once():
    encoder, read = features(), []
    encoder.encoder.register_forward_pre_hook(
        lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    model = make()
    model.text_encoder = encoder
    tokens = model.generate(["a dog", "b", "a dog"], seeds=[1, 2, 1], cfg_scale=2.0).tokens
    assert read == [3] and torch.equal(tokens.ids[0], tokens.ids[2])  # with the empty one


def test_it_learns_from_captions_and_leaves_classes_alone(tmp_path: Path):
    """The text encoder is frozen, no part of the weights, and the same one in the next process."""
    pytest.importorskip("transformers")
    tokenizer = tiny_tokenizer("fsq_linear")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    spec = {
        "name": "text",
        "task": "generator",
        "steps": 60,
        "batch_size": 8,
        "data": {"train": "emoji:Activities", "crop": "center"},
        "model": {**to_dict(make().config), "family": "flexar", "text": {"model": "tiny", "width": 64, "length": 24}},
        "loss": {"tokenizer": str(tmp_path / "tokenizer"), "views": 1},
        "optimizer": {"lr": 3.0e-3},
        "schedule": {"kind": "constant"},
        "ema": {"enabled": False},
        "eval_every": 30,
        "preview_every": 60,
        "output_dir": str(tmp_path),
    }
    for name in ("codebook_size", "num_tokens", "tokenizer_family", "tokenizer_model", "tokenizer_hash"):
        del spec["model"][name]
    result = train(from_dict(TrainConfig, spec))
    model = from_pretrained(result.folder / "final")
    assert model.num_classes == 0 and not any("encoder" in name for name in model.state_dict())
    bank, _ = open_tokens(from_dict(TrainConfig, spec).data, tokenizer, train=True, views=1, seed=0)
    rows = [bank[index, 0] for index in range(24)]
    tokens = Tokens(torch.stack([row["ids"] for row in rows]), codebook_size=tokenizer.codebook_size)
    captions = [row["caption"] for row in rows]
    own, others = (model.log_prob(tokens, texts).mean() for texts in (captions, captions[1:] + captions[:1]))
    assert own > others + 0.1  # what a picture's own caption tells


def test_shipped_guidance_of_a_prefix_begins_with_its_first_new_token():
    """The mark of "no class" is written over in the first pass, which reads the whole prefix."""
    model = make(text=None, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    labels, ids = model.encode_condition([3, 1]), torch.randint(24, (2, 3), generator=torch.Generator().manual_seed(0))
    options = {"temperature": 0.0, "cfg_scale": 4.0, "seeds": 0}
    for given in (1, 2, 3):
        prefix = Tokens(ids[:, :given], codebook_size=24)
        result = model.generate(labels, prefix=prefix, shipped_null=True, **options)
        made = result.tokens.ids
        with torch.no_grad():
            own, none, first = (
                model.logits(model.states(made, part)) for part in (labels, torch.full_like(labels, -1), labels * 0)
            )
        null = torch.cat([none[:, : given + 1], first[:, given + 1 :]], dim=1)
        assert torch.equal((null + 4.0 * (own - null)).argmax(-1)[:, given:], made[:, given:])
        assert not torch.equal(made, model.generate(labels, prefix=prefix, **options).tokens.ids)
        assert result.token_forwards == 2 * 2 * (1 + given + 1 + given + (8 - given - 1))  # all that was given, twice


def test_shapes_tell_heads_and_widths_where_the_tree_is_silent():
    norm = NormConfig("rms", 1e-6, True, False)
    own = {
        "attention": AttentionConfig(num_heads=4, qk_norm=norm),
        "reading": AttentionConfig(num_heads=2, qk_norm=norm),
    }
    model = make(**own, text=TextConfig(width=WORDS, out_width=20, length=6))
    state, tree = to_published(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    source = recognise(shapes)
    assert source.read_config(shapes, tree) == model.config
    silent = source.read_config(shapes, None)
    assert (silent.attention.num_heads, silent.reading.num_heads, silent.text.out_width) == (4, 2, 20)
    features = TextCondition(torch.randn(2, 3, WORDS), torch.ones(2, 3), torch.randn(1, 2, WORDS), torch.ones(1, 2))
    assert model.generate(features, seeds=0, cfg_scale=2.0).tokens.ids.shape == (2, 8)


def test_features_given_beforehand_are_the_same_as_captions():
    model = make()
    model.text_encoder = features()
    captions = ["a dog", "b"]
    given = TextCondition(*model.text_encoder(captions), *model.text_encoder([""]))
    expected = model.generate(captions, seeds=[1, 2], cfg_scale=2.0).tokens
    model.text_encoder = None
    assert model.generate(given, seeds=[1, 2], cfg_scale=2.0).tokens == expected
    rows = [given[torch.tensor([0])], given[torch.tensor([1])]]
    assert model.generate(rows, seeds=[1, 2], cfg_scale=2.0).tokens == expected


def test_padding_is_not_read():
    model = make()
    hidden, mask = torch.randn(2, 4, WORDS), torch.tensor([[True, True, False, False], [True] * 4])
    condition, ids = TextCondition(hidden, mask), torch.arange(16).view(2, 8)
    spoiled = hidden.clone()
    spoiled[0, 2:] = 100.0
    with torch.no_grad():
        torch.testing.assert_close(model.states(ids, condition), model.states(ids, TextCondition(spoiled, mask)))
        torch.testing.assert_close(model.states(ids, condition), model.states(ids, condition.padded(7)))


def test_the_text_is_read_once(monkeypatch):
    model, calls = make(), []
    for block in model.blocks:
        block.read.key.register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
    condition = TextCondition(torch.randn(1, 3, WORDS), torch.ones(1, 3).bool())
    model.generate(condition, 3, seeds=0)
    assert calls == [3, 3]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (5, "captions, or their features"),
        ([], "captions, or their features"),
        ([1, 2], "captions, or their features"),
        (TextCondition(torch.randn(1, 2, 3), torch.ones(1, 2)), "states of width 16"),
    ],
)
def test_bad_captions(condition, message):
    with pytest.raises(VistokError, match=message):
        make().generate(condition)


def test_bad_features():
    with pytest.raises(VistokError, match=r"\[B, n, D\]"):
        TextCondition(torch.randn(2, 3), torch.ones(2, 3))
    with pytest.raises(VistokError, match="at least one word"):
        TextCondition(torch.randn(2, 3, 4), torch.tensor([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(VistokError, match="together"):
        TextCondition(torch.randn(1, 3, 4), torch.ones(1, 3), null_hidden=torch.randn(1, 1, 4))
    with pytest.raises(VistokError, match="no empty caption"):
        TextCondition(torch.randn(1, 3, 4), torch.ones(1, 3)).null()


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"vistok\[text\]"):
        make().generate("a dog")


def test_layout_follows_the_tree():
    """Norms, attention and MLPs as the tree says; unknown parts are named."""
    model = make(
        num_classes=3,
        text=None,
        reading=AttentionConfig(),
        mlp="relu",
        attention=AttentionConfig(num_heads=4, scale=0.3),
    )
    state, tree = to_published(model)
    again, ours = convert_state(state, config=tree)
    assert again.config == model.config and again.config.attention.scale == 0.3
    assert key_report(again.state_dict(), ours) == ""
    trunk = tree["model"]["meta_model"]["models"]["ar_image_model"]["trunk"]
    for key, value, message in (
        ("norm_layer", {"_target_": "os.system"}, "os.system"),
        ("ffn_target", {"_target_": "l3m.model.layers.ffn.MoE"}, "MoE"),
        ("act_layer", {"_target_": "torch.nn.Tanh"}, "Tanh"),
        ("attn_target", {"_target_": "l3m.Other"}, "Other"),
        ("attn_target", trunk["attn_target"] | {"is_causal": False}, "not causal"),
    ):
        kept, trunk[key] = trunk[key], value
        with pytest.raises(PublishedConfigError, match=message):
            convert_state(state, config=tree)
        trunk[key] = kept


def test_other_networks_of_a_file_are_left_out():
    model = make()
    state, tree = to_published(model)
    state["models.text_encoder.t5_embedder.shared.weight"] = torch.zeros(3, 3)
    state["models.image_tokenizer.flextok_model.x"] = torch.zeros(3)
    again, ours = convert_state(state, config=tree)
    assert again.config == model.config and ours.keys() == model.state_dict().keys()


def test_without_a_tree_shapes_tell_what_they_can():
    model = make(norm=NormConfig("rms", 1e-6, True, False))
    shapes = {name: tuple(tensor.shape) for name, tensor in to_published(model)[0].items()}
    config = recognise(shapes).read_config(shapes)
    assert (config.norm, config.width, config.depth, config.attention.num_heads) == (model.config.norm, 32, 2, 1)


def test_sincos_table_starts_with_a_row_of_zeros():
    table = make(positions="sincos").pos_embed
    assert not table[0].any() and set(table[1].tolist()) == {0.0, 1.0} and len(table.unique(dim=0)) == 8
