"""KARL's and ALIT's published layouts, and those of the grid tokenizers below them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vistok.convert import recognise
from vistok.errors import CheckpointError, VistokError
from vistok.hub import from_pretrained, save_published, to_published
from vistok.models.ldm_kl import LdmKl
from vistok.models.maskgit_vqgan import MaskGitVqgan

from golden_cases import GoldenCase

GOLDEN = Path(__file__).parent / "golden"
CASES = ("karl/tiny-vqgan-quant", "karl/tiny-vae-quant", "alit/tiny-vqgan-quant", "alit/tiny-vae-quant")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return GoldenCase(GOLDEN / request.param)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_published_file_is_read_as_it_is(case: GoldenCase, tmp_path: Path) -> None:
    """Averaged weights beside raw ones, arguments, an optimizer, and the losses' own networks inside."""
    state = case.state()
    losses = {"gan_losses.0.discriminator.main.0.weight": torch.zeros(2)}
    content = {
        "model": {key: torch.zeros_like(value) for key, value in state.items()},
        "ema": state | losses,
        "optimizer": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(lr=1e-4),
        "epoch": 3,
    }
    torch.save(content, tmp_path / "karl.pth")
    model = from_pretrained(tmp_path / "karl.pth", config=case.config)
    assert model.family == case.family and not model.training
    again, _ = to_published(model)
    assert equal(again, state)


def test_our_model_is_written_as_published_and_read_again(case: GoldenCase, tmp_path: Path) -> None:
    torch.save(case.state(), tmp_path / "a.pth")
    model = from_pretrained(tmp_path / "a.pth", config=case.config)
    save_published(model, tmp_path / "b.safetensors")
    again = from_pretrained(tmp_path / "b.safetensors")
    assert again.config == model.config and again.weight_hash() == model.weight_hash()


def test_a_missing_tensor_is_named(case: GoldenCase, tmp_path: Path) -> None:
    state = case.state()
    del state["encoder_ln_pre.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing: encoder\.norm_pre\.bias"):
        from_pretrained(tmp_path / "a.pth", config=case.config)


@pytest.mark.parametrize(
    ("name", "prefix", "kind"),
    [
        ("karl/tiny-vae-quant", "base_tokenizer.vae.", LdmKl),
        ("karl/tiny-vqgan-quant", "base_tokenizer.vqgan.", MaskGitVqgan),
    ],
)
def test_grid_tokenizers_by_themselves(name: str, prefix: str, kind: type, tmp_path: Path) -> None:
    """kl16.ckpt and vqgan_jax_strongaug.ckpt have the names that KARL's checkpoints have below their prefix."""
    case = GoldenCase(GOLDEN / name)
    state = case.state(prefix)
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "a.ckpt")
    model = from_pretrained(tmp_path / "a.ckpt", config={"resolution": 32})
    assert isinstance(model, kind) and model.image_size == 32
    torch.save(case.state(), tmp_path / "karl.pth")
    whole = from_pretrained(tmp_path / "karl.pth", config=case.config)
    assert equal(dict(model.state_dict()), dict(whole.base.codec.state_dict()))
    source = recognise({key: tuple(value.shape) for key, value in state.items()})
    assert equal(source.key_map(model.config).to_published(model.state_dict()), state)


def test_options_that_the_published_layout_cannot_tell(case: GoldenCase) -> None:
    from dataclasses import replace

    from vistok.hub import empty_model
    from vistok.registry import model_class

    config = recognise(case.shapes).read_config(case.shapes, case.config)
    changes = {"kl": replace(config.kl, scaling_factor=1.0)} if config.base == "kl" else {"base": "pixels"}
    with pytest.raises(VistokError, match="published layout"):
        to_published(empty_model(model_class(case.family), replace(config, **changes)))
