"""KARL: deletion, batches, budgets, training, on tiny models of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import pictures

from vistok.errors import ConfigError, VistokError
from vistok.hub import from_pretrained
from vistok.models.karl import ERRORS, Karl, KarlConfig, join_gaps, split_gaps
from vistok.models.ldm_kl import LdmKl, LdmKlConfig
from vistok.models.maskgit_vqgan import MaskGitVqganConfig
from vistok.models.titok import TransformerSize
from vistok.tokens import Tokens

SIZE = TransformerSize(48, 2, 2)
VQGAN = MaskGitVqganConfig(
    image_size=32, base_channels=32, multipliers=(1, 1, 2), code_dim=16, codebook_size=20, num_blocks=1
)
KL = LdmKlConfig(image_size=32, base_channels=32, multipliers=(1, 1, 2), latent_channels=4, num_blocks=1, pixels="unit")
BASE = KarlConfig(
    image_size=32,
    patch_size=4,
    vqgan=VQGAN,
    kl=KL,
    encoder=SIZE,
    decoder=SIZE,
    num_tokens=24,
    budget=16,
    train_counts=(2, 12, 2),
    codebook_size=50,
    code_dim=6,
)
KINDS = {
    "vqgan_vq": BASE,
    "vqgan_continuous": replace(BASE, quantizer="none"),
    "kl_vq": replace(BASE, base="kl"),
    "kl_continuous_prefix": replace(BASE, base="kl", quantizer="none", kept="prefix"),
    "pixels_fsq": replace(BASE, base="pixels", quantizer="fsq", levels=(4, 3, 5, 2, 3, 3)),
    "linear": replace(
        BASE, base="pixels", quantizer="fsq", levels=(8, 8, 8, 8), code_dim=4, kept="prefix", init="linear"
    ),
    "progressive": replace(
        BASE, base="pixels", quantizer="fsq", levels=(8, 8, 8, 8), code_dim=4, kept="prefix", init="progressive"
    ),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str) -> Karl:
    """A model with fresh weights, except that it halts at random places which depend on the picture and the condition."""
    torch.manual_seed(0)
    model = Karl(KINDS[kind])
    if KINDS[kind].init != "random":
        model.fit_linear(pictures(24, seed=5))
    with torch.no_grad():
        for parameter in (model.encoder.latent_tokens, model.encoder.conditions, model.decoder.latent_pos_embed):
            parameter.normal_()
        for module in model.encoder.transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=1.5 * module.in_features**-0.5)
        model.halting_head[0].weight.normal_(std=0.5)
        model.halting_head[2].weight.normal_(std=0.4)
        model.halting_head[2].bias.fill_(0.7)
    return model.eval()


def test_tokens_are_ragged_and_decode(kind: str) -> None:
    model, images = make(kind), pictures(4)
    tokens = model.encode(images)
    assert model.adaptive and not model.ordered and tokens.is_continuous == model.continuous
    assert int(tokens.lengths.max()) <= 16 and tokens.num_tokens == int(tokens.lengths.max())
    if model.config.kept == "any":
        assert len(set(tokens.lengths.tolist())) > 1
    decoded = model.decode(tokens)
    assert decoded.shape == images.shape and 0.0 <= float(decoded.min()) <= float(decoded.max()) <= 1.0


def test_a_batch_gives_each_image_the_tokens_it_has_alone(kind: str) -> None:
    model, images = make(kind), pictures(5)
    errors = [0.01, 0.05, 0.07, 0.3, 0.9]
    whole = model.encode(images, target_error=errors)
    decoded = model.decode(whole)
    for row in range(5):
        alone = model.encode(images[row : row + 1], target_error=errors[row])
        assert torch.equal(alone.lengths, whole.lengths[row : row + 1])
        if not model.continuous:
            assert alone == whole[row]
        torch.testing.assert_close(model.decode(whole[row])[0], decoded[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deleting_is_masking(kind: str, dtype: torch.dtype) -> None:
    model, images = make(kind).to(dtype), pictures(4).to(dtype)
    conditions = model.error_index(0.05, 4)
    hidden = model.encoder(images, model.base.encode(images), conditions, 16)
    kept, values = model.keep_mask(model.halting_logits(hidden, images, conditions)), model.latents(hidden, images)
    quantised = values.float() if model.quantizer is None else model.quantizer(values).latents
    _, masked = model.decode_latents(quantised.to(dtype), kept=kept)
    tokens = model.encode(images)
    assert torch.equal(tokens.lengths, kept.sum(dim=1))
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(model.decode(tokens, clamp=False), masked.float(), **tolerance)
    for row in range(4):  # alone, without any mask: what is deleted is not there
        alone = model.decode(tokens[row].truncate(int(tokens.lengths[row])), clamp=False)
        torch.testing.assert_close(alone[0], masked[row].float(), **tolerance)


def test_padding_changes_nothing(kind: str) -> None:
    model = make(kind)
    tokens = model.encode(pictures(3))
    torch.testing.assert_close(model.decode(tokens.pad(30)), model.decode(tokens))


def test_an_image_may_do_without_tokens(kind: str) -> None:
    model = make(kind)
    with torch.no_grad():
        model.halting_head[2].bias.fill_(100.0)
    tokens = model.encode(pictures(2))
    assert tokens.lengths.tolist() == [0, 0]
    assert model.decode(tokens).shape == (2, 3, 32, 32)


def test_a_token_keeps_its_position() -> None:
    model = make("vqgan_vq")
    values = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([[0, 1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0]]).bool()
    tokens = model.pack(values, kept)
    codes = model.quantizer(values).ids
    latents, positions = model.unpack(tokens)
    assert tokens.lengths.tolist() == [3, 1]
    assert positions[0].tolist() == [1, 2, 6] and int(positions[1, 0]) == 0
    assert (tokens.ids[0] % 50).tolist() == codes[0, kept[0]].tolist()
    assert tokens.codebook_size == (50, 24)
    torch.testing.assert_close(latents[0], model.quantizer.lookup(codes)[0, kept[0]])


def test_without_deletions_ids_are_the_codes() -> None:
    model = make("vqgan_vq")
    tokens = model.encode(pictures(2), length=9)
    assert tokens.lengths.tolist() == [9, 9] and int(tokens.ids.max()) < 50
    codes, gaps = split_gaps(join_gaps(tokens.ids, tokens.ids + 1, 50), 50)
    assert torch.equal(codes, tokens.ids) and torch.equal(gaps, tokens.ids + 1)


def test_gaps_past_the_last_position_are_cut() -> None:
    model = make("vqgan_vq")
    tokens = Tokens(ids=torch.tensor([[50 * 23 + 3, 50 * 23 + 4]]), codebook_size=(50, 24))
    assert model.unpack(tokens)[1].tolist() == [[23, 23]]
    assert model.decode(tokens).isfinite().all()


def test_saved_tokens_come_back(tmp_path: Path) -> None:
    for model in map(make, ("kl_continuous_prefix", "vqgan_vq", "vqgan_continuous")):
        tokens = model.encode(pictures(3))
        tokens.save(tmp_path / "a.vtk")
        again = Tokens.load(tmp_path / "a.vtk")
        assert again == tokens
        torch.testing.assert_close(model.decode(again), model.decode(tokens))


def test_prefix_keeps_up_to_the_last_token() -> None:
    model = make("kl_continuous_prefix")
    logits = torch.tensor([[9.0, -9.0, 9.0, -9.0, 9.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    assert model.keep_mask(logits).sum(dim=1).tolist() == [4, 0]
    assert make("vqgan_vq").keep_mask(logits).sum(dim=1).tolist() == [2, 0]


def test_lengths_and_budgets() -> None:
    model, images = make("vqgan_vq"), pictures(3)
    lengths = model.encode(images, length=[3, 24, 7]).lengths
    assert lengths.tolist() == [3, 24, 7]
    assert model.encode(images, length=torch.tensor([3, 24, 7])) == model.encode(images, length=[3, 24, 7])
    assert int(model.encode(images, max_tokens=5).lengths.max()) <= 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_error": -0.1}, "mean absolute error"),
        ({"target_error": float("nan")}, "mean absolute error"),
        ({"target_error": [0.1, 0.2, 0.3]}, "each of 2 images"),
        ({"target_error": "low"}, "is a number"),
        ({"max_tokens": 0}, "1 to 24"),
        ({"max_tokens": 25}, "1 to 24"),
        ({"max_tokens": 2.0}, "1 to 24"),
        ({"length": 25}, "1 to 24"),
        ({"length": [1]}, "each of 2 images"),
        ({"length": 3, "max_tokens": 4}, "either"),
        ({"target": ("psnr", 20.0)}, "target_error"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], words: str) -> None:
    with pytest.raises(VistokError, match=words):
        make("vqgan_vq").encode(pictures(2), **options)


def test_errors_are_rounded_up() -> None:
    model = make("vqgan_vq")
    index = model.error_index([0.0, 0.005, 0.0051, 0.05, 0.38, 0.39, 7.0], 7).tolist()
    assert index == [0, 0, 1, 5, 18, 18, 18] and len(ERRORS) == 19


def test_bad_tokens_and_configurations_are_explained() -> None:
    model = make("vqgan_continuous")
    with pytest.raises(VistokError, match="7 channels"):
        model.decode(Tokens(latents=torch.zeros(1, 2, 6)))
    with pytest.raises(VistokError, match="no condition"):
        model.decode(model.encode(pictures(1)), condition=1)
    for changes in (
        {"budget": 25},
        {"train_counts": (0, 4, 1)},
        {"patch_size": 8},
        {"target_error": -1.0},
        {"quantizer": "fsq"},
        {"init": "linear"},
        {"encoder": TransformerSize(16, 2, 2)},
    ):
        with pytest.raises(ConfigError):
            replace(BASE, **changes)


def test_saving_and_loading_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config and again.encode(pictures(2)) == model.encode(pictures(2))


# Training.


def outputs(model: Karl, **options: object) -> dict[str, object]:
    conditions = torch.tensor([0, 1])
    noise = torch.zeros(2, *model.base.noise_shape()) if model.base.noise_shape() else None
    return model(pictures(2), count=6, conditions=conditions, noise=noise, **options)


def test_two_runs_of_an_iteration(kind: str) -> None:
    model = make(kind).train()
    out = outputs(model)
    first, second = out["runs"]
    assert first["halting"].shape == (2, 6) and second["halting"].shape == (2, 16)
    assert not first["targets"].any() and second["targets"].sum(dim=1).tolist() == [10.0, 10.0]
    error = (first["reconstruction"] - pictures(2)).abs().flatten(1).mean(dim=1)
    torch.testing.assert_close(out["error"], error)


def test_masks_of_an_image_are_its_own() -> None:
    """The second run of an image does not depend on its neighbour, unless masks are mixed as in the published code."""
    torch.manual_seed(0)
    model = make("vqgan_vq").train()
    other = pictures(2)
    other[1] = pictures(3, seed=9)[2]
    conditions = torch.tensor([0, 1])
    runs = [model(images, count=6, conditions=conditions)["runs"][1]["out"][0] for images in (pictures(2), other)]
    torch.testing.assert_close(runs[0], runs[1])
    mixed = Karl(replace(model.config, mixed_masks=True))
    mixed.load_state_dict(model.state_dict())
    runs = [mixed(images, count=6, conditions=conditions)["runs"][1]["out"][0] for images in (pictures(2), other)]
    assert not torch.allclose(runs[0], runs[1])


def test_gradients_reach_every_parameter(kind: str) -> None:
    model = make(kind).train()
    for seed in range(3):
        torch.manual_seed(seed)
        out = outputs(model)
        loss = sum(run["reconstruction"].square().mean() + run["halting"].square().mean() for run in out["runs"])
        loss = loss + sum(value for run in out["runs"] for key, value in run.items() if key.startswith("loss_"))
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_frozen_base_stays_put() -> None:
    model = make("vqgan_vq").train()
    model.freeze_base()
    out = outputs(model)
    assert "reconstruction" not in out["runs"][1] and not out["runs"][0]["reconstruction"].requires_grad
    sum(run["features"].square().mean() for run in out["runs"]).backward()
    assert all(p.grad is None for p in model.base.parameters()) and not model.base.training
    assert model.encoder.patch_embed.weight.grad is not None


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enabled in (False, True):
        model = make("kl_vq").train()
        model.set_gradient_checkpointing(enabled)
        outputs(model)["runs"][1]["reconstruction"].square().mean().backward()
        gradients.append(model.encoder.patch_embed.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_draws_are_an_images_own() -> None:
    model = make("kl_vq")
    one, again = (model.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.keys() == {"uniform", "noise"} and one["noise"].shape == (4, 8, 8)
    assert all(torch.equal(one[key], again[key]) for key in one)
    counts = {model.draw_count(torch.Generator().manual_seed(seed)) for seed in range(60)}
    assert counts == {2, 4, 6, 8, 10, 12}


# The grid tokenizer below.


@pytest.mark.parametrize("pixels", ["unit", "symmetric"])
def test_ldm_kl_by_itself(pixels: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LdmKl(replace(KL, pixels=pixels)).eval()
    tokens = model.encode(pictures(2))
    assert tokens.latents.shape == (2, 64, 4) and model.num_tokens == 64
    assert model.decode(tokens).shape == (2, 3, 32, 32)
    drawn = model.encode(pictures(2), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn.latents, tokens.latents)
    out = model.train()(pictures(2), noise=torch.zeros(2, 4, 8, 8))
    torch.testing.assert_close(out["reconstruction"], model.eval().decode(tokens, clamp=False), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).encode(pictures(2)) == tokens
    with pytest.raises(VistokError, match="4 channels"):
        model.decode(Tokens(latents=torch.zeros(1, 64, 5)))
