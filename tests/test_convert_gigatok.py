"""GigaTok's published layout: names and configuration in both directions, checkpoints of training, what is refused."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.convert import recognise
from vistok.convert.gigatok import GIGATOK
from vistok.errors import CheckpointError, PublishedConfigError
from vistok.hub import empty_model, from_pretrained, save_published, to_published
from vistok.models.gigatok import GigaTok, GigaTokConfig
from vistok.models.titok import TransformerSize

from golden_cases import GoldenCase
from golden_cases.gigatok import build

GOLDEN = Path(__file__).parent / "golden" / "gigatok"
SIZE = TransformerSize(64, 2, 1)
CONFIG = GigaTokConfig(
    image_size=16,
    base_channels=32,
    multipliers=(1, 2),
    decoder_multipliers=(1, 2),
    num_blocks=1,
    map_channels=8,
    encoder=SIZE,
    decoder=SIZE,
    num_tokens=16,
    codebook_size=50,
    code_dim=4,
    repa_dim=6,
    repa_depth=2,
    usage_window=12,
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention": {"conv_attention": True, "num_blocks": 2},
    "nearest": {"upsample": "nearest", "adaptive_norm": False},
    "mean": {"query_init": "mean"},
    "learned": {"query_init": "learned"},
    "qk_norm": {"qk_norm": True, "decoder": TransformerSize(48, 2, 4)},
    "no_head": {"repa_dim": 0, "usage_window": 0},
    "options": {"gradient": "straight_through", "entropy_weight": 0.25, "l2_norm": False, "commitment_cost": 1.5},
    "other_decoder": {"decoder_multipliers": (2, 3)},
    "grid": {"layout": "2d", "num_tokens": 64},
    "grid_plain": {"layout": "2d", "num_tokens": 64, "layers": "plain", "qk_norm": True},
    "heads": {"encoder": TransformerSize(64, 2, 8)},
}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_option_survives_the_published_layout(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GigaTok(replace(CONFIG, **KINDS[kind])).eval()
    save_published(model, tmp_path / "model.safetensors")
    again = from_pretrained(tmp_path / "model.safetensors")
    assert again.config == model.config and again.weight_hash() == model.weight_hash()
    state, _ = to_published(model)
    assert equal(to_published(again)[0], state)


@pytest.mark.parametrize("name", ["tiny-1d", "tiny-1d-qknorm", "tiny-2d-qformer", "tiny-2d-vit"])
def test_the_configuration_that_we_write_is_the_published_one(name: str) -> None:
    case = GoldenCase(GOLDEN / name)
    model, _ = build(case)
    ours, theirs = to_published(model)[1]["model"], case.config["model"]
    assert ours["model_cls"] == theirs["model_cls"]
    for key, value in theirs["init_args"].items():
        if key in ours["init_args"] and key not in ("encoder_size", "decoder_size", "num_latent_tokens"):
            assert ours["init_args"][key] == value, key


@pytest.mark.parametrize("name", ["tiny-1d", "tiny-2d-vit"])
def test_without_a_configuration_all_but_the_heads_is_known(name: str) -> None:
    case = GoldenCase(GOLDEN / name)
    told = build(case)[0].config
    guessed = recognise(case.shapes).read_config(case.shapes)
    one = {"repa_depth": told.repa_depth}
    sizes = [replace(getattr(told, side), num_heads=1) for side in ("encoder", "decoder")]
    assert replace(guessed, **one) == replace(told, encoder=sizes[0], decoder=sizes[1])


def test_published_sizes_are_named_without_a_configuration() -> None:
    case = GoldenCase(GOLDEN / "xlxxl-names")
    config = GIGATOK.read_config(case.shapes)
    assert (config.encoder, config.decoder, config.repa_depth) == ("xl", "xxl", 3)
    assert config == replace(GigaTokConfig(), encoder="xl", decoder="xxl")


def test_checkpoints_of_training_give_the_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GigaTok(CONFIG).eval()
    state, config = to_published(model)
    arguments = argparse.Namespace(lr=1e-4, name="run", betas=[0.9, 0.95])
    other = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "VQ.pt"
    for content in (
        {"model": other, "ema": state, "args": arguments},
        {"model": state, "steps": 3},
        {"state_dict": state},
    ):
        torch.save({**content, "optimizer": {"state": {}}}, path)
        assert from_pretrained(path, config=config).weight_hash() == model.weight_hash()


def test_a_checkpoint_without_the_training_head() -> None:
    case = GoldenCase(GOLDEN / "tiny-1d")
    shapes = {key: shape for key, shape in case.shapes.items() if "distill_mlp" not in key}
    config = recognise(shapes).read_config(shapes, case.config)
    assert config.repa_dim == 0 and empty_model(GigaTok, config).repa_head is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"multi_level_2d_query_init": True}, "multi_level_2d_query_init is not known"),
        ({"causal_settings": {"causal_type": "prefix"}}, "causal training is not known"),
    ],
)
def test_settings_that_no_published_model_has(args: dict[str, Any], words: str) -> None:
    case = GoldenCase(GOLDEN / "tiny-1d")
    with pytest.raises(PublishedConfigError, match=words):
        recognise(case.shapes).read_config(case.shapes, args)


def test_another_image_size_is_refused() -> None:
    case = GoldenCase(GOLDEN / "tiny-1d")
    with pytest.raises(CheckpointError, match="32-pixel images, and 64"):
        recognise(case.shapes).read_config(case.shapes, image_size=64)
