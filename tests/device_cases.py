"""What models do on another device than the CPU; ``test_devices.py`` runs these in a process that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_alit
import test_masked
import test_softmax
import tiny_models
import torch
from accelerate.state import PartialState
from another_device import DEVICE, MixedDevicesError

from vistok.config import from_dict
from vistok.generate import DigitAR, DigitARConfig
from vistok.hub import create_model, from_pretrained
from vistok.models.alit import Alit
from vistok.search import search
from vistok.training import TrainConfig, train


def test_mixing_is_seen() -> None:
    """The device itself: a model there cannot read what lies here."""
    model = tiny_models.make("vq_pixels").to(DEVICE)
    with pytest.raises(MixedDevicesError, match="both devices"):
        model.encode_latents(tiny_models.pictures(1))
    assert model.encode(tiny_models.pictures(1)).ids.device == DEVICE


@pytest.mark.parametrize("kind", sorted(tiny_models.KINDS))
def test_tokenizers(kind: str) -> None:
    """The same tokens and images as on the CPU, from images and tokens of either."""
    model, images = tiny_models.make(kind), tiny_models.pictures(2)
    condition = tiny_models.condition(model, 2)
    tokens = model.encode(images)
    decoded = model.decode(tokens, condition=condition)
    model.to(DEVICE)
    for given in (images, images.to(DEVICE)):
        there = model.encode(given)
        assert there.device == DEVICE
        if tokens.is_continuous:
            torch.testing.assert_close(there.latents.cpu(), tokens.latents)
        else:
            assert torch.equal(there.ids.cpu(), tokens.ids)
    for held in (tokens, there):
        torch.testing.assert_close(model.decode(held, condition=condition).cpu(), decoded)


@pytest.mark.parametrize(
    "name",
    ["flextok_tiny_64.photos", "gigatok_tiny_64.emoji", "karl_tiny_64.photos", "onedpiece_tiny_64.photos", "alit"],
)
def test_tokenizers_of_other_families(name: str) -> None:
    torch.manual_seed(0)
    model = Alit(test_alit.BASE) if name == "alit" else create_model(name)
    images = torch.rand(2, 3, *model.eval().image_shape)
    options = {"target_error": 0.2} if model.family == "karl" else {}
    tokens = model.encode(images, **options)
    noise = model.decode_noise([1, 2])
    decoded = model.decode(tokens, **noise)
    model.to(DEVICE)
    there = model.encode(images, **options)
    assert there.device == DEVICE and there.to("cpu") == tokens
    for held in (tokens, there):
        torch.testing.assert_close(model.decode(held, **noise).cpu(), decoded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(tiny_models.KINDS))
def test_gradients(kind: str) -> None:
    model = tiny_models.make(kind).to(DEVICE).train()
    options = {"text": tiny_models.condition(model, 2).to(DEVICE)} if model.conditional else {}
    out = model(tiny_models.pictures(2).to(DEVICE), **options)
    (out["reconstruction"].square().mean() + sum(v.mean() for k, v in out.items() if k.startswith("loss_"))).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.device == DEVICE for gradient in gradients)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", sorted(test_softmax.KINDS))
def test_generators_of_tokens_in_order(kind: str, static: bool) -> None:
    """By slices of the cache, and as on CUDA under masks over all of it."""
    model = test_softmax.make(kind)
    condition, options = test_softmax.conditions(model, 3), {"seeds": [1, 2, 3], "cfg_scale": 2.0}
    here = model.generate(condition, return_log_probs=True, **options)
    model.to(DEVICE)
    new_cache = model.new_cache
    model.new_cache = lambda rows: new_cache(rows, static=static)
    there = model.generate(condition, return_log_probs=True, **options)
    assert there.tokens.device == DEVICE and torch.equal(there.tokens.ids.cpu(), here.tokens.ids)
    torch.testing.assert_close(there.log_probs.cpu(), here.log_probs)


@pytest.mark.parametrize("kind", sorted(test_masked.KINDS))
def test_generators_of_masked_tokens(kind: str) -> None:
    model = test_masked.make(kind)
    condition = test_masked.conditions(model, 3)
    here = test_masked.made(model.generate(condition, seeds=[1, 2, 3]))
    there = test_masked.made(model.to(DEVICE).generate(condition, seeds=[1, 2, 3]))
    assert there.device == DEVICE
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("verifier", ["likelihood", "brightness"])
@pytest.mark.parametrize("method", ["best_of_n", "beam", "lookahead"])
def test_search(method: str, verifier: str) -> None:
    tokenizer = tiny_models.make("fsq_linear")
    torch.manual_seed(0)
    size = {"codebook_size": tokenizer.codebook_size, "num_tokens": tokenizer.num_tokens, "width": 16, "depth": 1}
    generator = DigitAR(DigitARConfig(**size, num_classes=3, num_heads=1)).eval()
    options: dict[str, Any] = {"method": method, "seeds": [1, 2], "budget": 6}
    options["verifier"] = verifier if verifier == "likelihood" else lambda images, condition: images.mean(dim=(1, 2, 3))
    here = search(generator, tokenizer, [0, 2], **options)
    there = search(generator.to(DEVICE), tokenizer.to(DEVICE), [0, 2], **options)
    assert there.tokens.to("cpu") == here.tokens
    torch.testing.assert_close(there.images.cpu(), here.images)


def test_training(tmp_path: Path) -> None:
    """A tokenizer, and a generator on its tokens: trained, evaluated, previewed and loaded again."""
    size = {"width": 32, "depth": 1, "num_heads": 2}
    shape = {"image_size": 32, "patch_size": 8, "num_tokens": 6, "codebook_size": 50, "code_dim": 4}
    every = {"steps": 2, "batch_size": 4, "eval_every": 1, "preview_every": 1, "output_dir": str(tmp_path)}
    every["data"] = {"train": "random:24", "val": "random:24"}
    tokenizer = {"family": "titok", "encoder": size, "decoder": size} | shape
    train(from_dict(TrainConfig, every | {"name": "a", "task": "tokenizer", "model": tokenizer}))
    loss = {"tokenizer": str(tmp_path / "a" / "final"), "views": 2}
    generator = {"family": "gpt"} | size
    train(from_dict(TrainConfig, every | {"name": "b", "task": "generator", "model": generator, "loss": loss}))
    assert PartialState().device == DEVICE
    assert from_pretrained(tmp_path / "b" / "final").num_tokens == 6
