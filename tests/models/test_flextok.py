"""FlexTok: both layouts of its decoder, ragged batches, what decoding depends on, training outputs, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.config import from_dict, to_dict
from vistok.errors import ConfigError, VistokError
from vistok.hub import from_pretrained
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.layers.ragged import attention_with_multiplicity
from vistok.losses.alignment import alignment_loss
from vistok.losses.flow_matching import flow_matching_loss
from vistok.models.flextok import FlexTok
from vistok.models.flextok_config import FlexTokConfig, FlowSamplingConfig, RegisterTransformerSize
from vistok.models.kl_vae import KlVae, KlVaeConfig
from vistok.tokens import Tokens

SIZE = RegisterTransformerSize(width=32, depth=2, head_dim=16)
VAE = KlAutoencoderConfig(
    latent_channels=4, block_channels=(8, 16), layers_per_block=1, norm_groups=4, scaling_factor=0.5
)
BASE = FlexTokConfig(
    vae=VAE,
    grid_size=(4, 4),
    num_tokens=12,
    levels=(8, 5, 4),
    encoder=SIZE,
    decoder=replace(SIZE, width=48, depth=3),
    repa_dim=6,
    sampling=FlowSamplingConfig(steps=3, guidance=2.0),
)
KINDS = {
    "vae": BASE,
    "pixels": replace(BASE, vae="none", patch_size=4, nested_dropout="uniform"),
    "shared_modulation": replace(BASE, modulation_kinds=1, causal=False, repa_dim=0, intermediate_layers=()),
}


def make(kind: str = "pixels", **changes: Any) -> FlexTok:
    """A model with random weights everywhere: fresh ones have zeros, with which anything agrees."""
    torch.manual_seed(0)
    model = FlexTok(replace(KINDS[kind], **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vae."):
                nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.ndim > 1 else 4) ** -0.5)
        model.encoder.to_latents.weight.mul_(3.0)
        model.decoder.register_pos_embed.mul_(5.0)
    return model


def pictures(count: int, seed: int = 0) -> Tensor:
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=True)


def some_tokens(model: FlexTok, lengths: list[int], seed: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(160, (len(lengths), model.num_tokens), generator=generator)
    return Tokens(ids=ids, codebook_size=model.codebook_size).truncate(lengths)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# The exact shortcut.


@pytest.mark.parametrize("keep", [[1, 1, 1], [12, 12, 12], [0, 0, 0], [3, 12, 0], [7, 1, 7, 0, 12, 5]])
def test_both_layouts_give_the_same_velocity_to_the_last_digits(kind: str, keep: list[int]) -> None:
    model = make(kind).double()
    generator = torch.Generator().manual_seed(3)
    batch = 3
    x = torch.randn(batch, model.config.channels, *model.config.map_size, generator=generator).double()
    codes = torch.rand(batch, 12, 3, generator=generator).double() * 2 - 1
    modulations = model.decoder.modulations(torch.rand(len(keep), generator=generator))
    outputs = []
    for fast in (True, False):
        condition = model.decoder.condition(codes, keep, num_patches=16, fast=fast)
        outputs.append(model.decoder(x, modulations, condition))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=1e-11, atol=1e-11)
    if model.config.intermediate_layers:
        torch.testing.assert_close(outputs[0][1], outputs[1][1], rtol=1e-11, atol=1e-11)
    rows = 16 * len(keep) + sum(length + (length < 12) for length in keep)
    assert model.decoder.condition(codes, keep, num_patches=16).layout.num_rows == rows
    assert outputs[0][0].abs().mean() > 0.05


def test_gradients_are_the_same_in_both_layouts() -> None:
    grads = []
    for fast in (True, False):
        model = make().train()
        out = model(
            pictures(3), noise=torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
            u=torch.tensor([0.1, 0.5, 0.9]), keep=[2, 12, 5], drop=[False, False, True], fast=fast,
        )  # fmt: skip
        (flow_matching_loss(out["velocity"], out["target"]) + out["projected"].square().mean()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("guidance", [1.0, 3.0, lambda t: 1.0 + 2.0 * t])
@pytest.mark.parametrize("apg", [False, True])
def test_decoding_is_the_same_in_both_layouts(guidance: float | Callable[[float], float], apg: bool) -> None:
    model = make()
    tokens = some_tokens(model, [1, 5, 12, 5])
    options = {"guidance": guidance, "apg": apg, "steps": 4}
    fast, plain = (model.decode_latents(tokens, **options, fast=fast) for fast in (True, False))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [16, 20])
def test_one_key_stands_for_many(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, width, generator=generator).to(dtype) for _ in range(3))
    many_keys, many_values = (torch.cat([x, x[:, :, -1:].expand(-1, -1, 246, -1)], dim=2) for x in (key, value))
    wanted = nn.functional.scaled_dot_product_attention(
        query.double(), many_keys.double(), many_values.double(), scale=0.5
    )
    got = attention_with_multiplicity(query, key, value, 247, scale=0.5)
    assert got.dtype == dtype and got.shape == query.shape
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    bias = (got.double() - wanted).mean().abs()
    assert bias < tolerance / 4, "an error of the multiplicity would push all outputs one way"


# Tokens and images.


def test_shapes_ranges_and_what_it_is(kind: str) -> None:
    model = make(kind)
    assert (model.image_size, model.num_tokens, model.codebook_size) == (16, 12, (8, 5, 4))
    assert model.ordered and not (model.adaptive or model.continuous or model.conditional)
    tokens = model.encode(pictures(3))
    assert tokens.ids.shape == (3, 12) and tokens.vocab_size == 160 and tokens.family == "flextok"
    images = model.decode(tokens)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32
    assert 0.0 <= float(images.min()) and float(images.max()) <= 1.0


def test_encoding_does_not_depend_on_the_batch_and_prefixes_on_the_length() -> None:
    for kind in ("vae", "pixels"):
        model, images = make(kind), pictures(4)
        whole = model.encode(images)
        assert model.encode(images) == whole and len(whole.ids.unique()) > 10
        assert all(model.encode(images[row : row + 1]) == whole[row] for row in range(4))
        for length in (1, 5, 12):
            assert model.encode(images, length=length) == whole.truncate(length)


def test_a_generator_samples_the_posterior_image_by_image() -> None:
    model, images = make("vae"), pictures(3)
    with torch.no_grad():
        model.vae.net.quant_conv.bias[4:] = 2.0  # wide posteriors

    def draw(count: int, seed: int) -> Tokens:
        return model.encode(images[:count], generator=torch.Generator().manual_seed(seed))

    assert draw(3, 1) == draw(3, 1) != model.encode(images)
    assert draw(1, 1) == draw(3, 1)[0] and draw(3, 1) != draw(3, 2)


def test_a_ragged_batch_is_the_rows_one_by_one(kind: str) -> None:
    model = make(kind)
    tokens = some_tokens(model, [4, 1, 12, 4, 11])
    images = model.decode(tokens, clamp=False)
    for row in range(5):
        torch.testing.assert_close(images[row], model.decode(tokens[row], clamp=False)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(images[0], images[3])


@pytest.mark.parametrize("start", ["seed", "generator", "noise"])
def test_an_image_does_not_depend_on_those_after_it(start: str) -> None:
    model = make()
    tokens = some_tokens(model, [4, 9, 2])
    noise = torch.randn(3, 3, 16, 16)

    def options(count: int) -> dict[str, Any]:
        if start == "noise":
            return {"noise": noise[:count]}
        return {"seed": 5} if start == "seed" else {"generator": torch.Generator().manual_seed(5)}

    whole = model.decode(tokens, clamp=False, **options(3))
    assert torch.equal(whole, model.decode(tokens, clamp=False, **options(3)))
    for count in (1, 2):
        part = model.decode(tokens[list(range(count))], clamp=False, **options(count))
        torch.testing.assert_close(part, whole[:count], rtol=1e-4, atol=1e-5)


def test_seeds_give_other_images_and_prefixes_start_alike() -> None:
    model = make()
    tokens = some_tokens(model, [12])
    assert not torch.allclose(model.decode(tokens, seed=0), model.decode(tokens, seed=1))
    first = model._starting_noise(tokens, None, None, 0)
    assert torch.equal(first, model._starting_noise(tokens.truncate(3), None, None, 0))
    state = torch.get_rng_state()
    model.decode(tokens)
    assert torch.equal(state, torch.get_rng_state())


def test_options_have_defaults_in_the_configuration() -> None:
    model = make()
    tokens = some_tokens(model, [6])
    default = model.decode(tokens, clamp=False)
    assert torch.equal(default, model.decode(tokens, clamp=False, steps=3, guidance=2.0, apg=True))
    for other in ({"steps": 4}, {"guidance": 3.0}, {"apg": False}):
        assert not torch.allclose(default, model.decode(tokens, clamp=False, **other))
    assert model.decode(tokens).max() <= 1.0


def test_ids_past_the_length_do_not_matter_and_those_before_do() -> None:
    model = make()
    tokens = some_tokens(model, [12])
    noise = torch.randn(1, 3, 16, 16)
    images = [model.decode(tokens.truncate(length), noise=noise, clamp=False) for length in (3, 4, 12)]
    assert not torch.allclose(images[0], images[1]) and not torch.allclose(images[1], images[2])


def test_saving_and_loading_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again, FlexTok) and again.config == model.config and again.weight_hash() == model.weight_hash()
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    tokens = model.encode(pictures(2))
    assert again.encode(pictures(2)) == tokens and torch.equal(again.decode(tokens), model.decode(tokens))
    (tmp_path / "config.json").write_text(json.dumps({"family": "flextok", "config": to_dict(model.config)}))
    assert from_pretrained(tmp_path).config == model.config


def test_a_model_in_bf16_reads_and_gives_exact_ids() -> None:
    model = make("vae")
    tokens = model.encode(pictures(2))
    latents = model.encoder(model.to_latents(pictures(2)))
    low = make("vae").bfloat16()
    assert torch.equal(low.quantizer(latents).ids, tokens.ids)
    assert torch.equal(low.quantizer.ids_of(low.quantizer.lookup(tokens.ids).bfloat16()), tokens.ids)
    assert low.dtype == torch.bfloat16 and low.vae.net.quant_conv.weight.dtype == torch.float32
    ids = low.encode(pictures(2)).ids
    assert ids.dtype == torch.int64 and (ids == tokens.ids).float().mean() > 0.5
    close = model.decode(tokens, clamp=False), low.decode(tokens, clamp=False)
    assert close[1].dtype == torch.float32 and (close[0] - close[1]).abs().mean() < 0.1 * close[0].std()


def test_autocast_works() -> None:
    model = make("vae").train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pictures(2), generator=torch.Generator().manual_seed(0))
    loss = flow_matching_loss(out["velocity"], out["target"])
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


# Training.


def test_training_outputs() -> None:
    model = make("vae").train()
    out = model(pictures(5), generator=torch.Generator().manual_seed(0))
    again = model(pictures(5), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(out[key], again[key]) for key in out)
    assert out["velocity"].shape == out["target"].shape == out["noised"].shape == (5, 4, 8, 8)
    assert (
        out["ids"].shape == (5, 12) and out["features"].shape == (5, 16, 48) and out["projected"].shape == (5, 4, 4, 6)
    )
    assert out["keep"].dtype == torch.int64 and out["drop"].dtype == torch.bool
    levels = out["noise_levels"]
    assert levels.shape == (5,) and 0 <= float(levels.min()) and float(levels.max()) <= 1
    evaluated = model.eval()(pictures(5), generator=torch.Generator().manual_seed(0))
    assert evaluated["keep"].tolist() == [12] * 5 and not evaluated["drop"].any()


def test_the_velocity_is_that_of_the_noised_latents() -> None:
    model = make()
    images, noise = pictures(2), torch.randn(2, 3, 16, 16)
    out = model(images, noise=noise, u=torch.tensor([0.0, 1.0]), keep=[4, 12], drop=[False, False])
    latents = model.to_latents(images)
    torch.testing.assert_close(out["noised"][0], noise[0])  # mode sampling runs from noise to clean
    torch.testing.assert_close(out["noised"][1], latents[1])
    torch.testing.assert_close(out["target"], noise - latents)
    codes = model.quantizer.lookup(out["ids"])
    wanted = model.velocity(out["noised"], out["noise_levels"], codes, [4, 12])
    torch.testing.assert_close(out["velocity"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit_normal", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_noise_levels_of_every_kind_can_be_drawn(logit_normal: bool, stratified: bool) -> None:
    model = make(logit_normal=logit_normal, stratified=stratified).train()
    levels = model(pictures(6), generator=torch.Generator().manual_seed(0))["noise_levels"]
    assert 0 < float(levels.min()) and float(levels.max()) < 1
    if logit_normal and stratified:
        assert torch.equal(levels, levels.sort().values)


def test_gradients_reach_every_parameter_but_the_autoencoder() -> None:
    for kind in KINDS:
        model = make(kind).train()
        out = model(pictures(3), generator=torch.Generator().manual_seed(0), keep=[2, 12, 5], drop=[0, 0, 1])
        loss = flow_matching_loss(out["velocity"], out["target"])
        if "projected" in out:
            loss = loss + alignment_loss(out["projected"], torch.randn(3, 7, 7, 6))
        loss.backward()
        trained = {name: p for name, p in model.named_parameters() if not name.startswith("vae.")}
        assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert all(p.requires_grad == (name in trained) for name, p in model.named_parameters())


def test_a_parameter_that_a_batch_does_not_use_gets_a_zero_gradient() -> None:
    model = make().train()
    out = model(pictures(2), keep=[12, 12], drop=[True, True], generator=torch.Generator().manual_seed(0))
    (out["velocity"].mean() + out["projected"].mean()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not model.decoder.mask_token.grad.any() and not model.encoder.registers.grad.any()


def test_gradient_checkpointing_changes_nothing() -> None:
    grads = []
    for enabled in (False, True):
        model = make("vae").train()
        model.set_gradient_checkpointing(enabled)
        out = model(pictures(3), generator=torch.Generator().manual_seed(0))
        flow_matching_loss(out["velocity"], out["target"]).backward()
        grads.append(model.encoder.patch_embed.weight.grad)
    assert grads[0].any()
    torch.testing.assert_close(grads[0], grads[1])


def test_unrounded_training_passes_bounded_values() -> None:
    model = make(drop_quant_probability=1.0).train()
    given = {"noise": torch.zeros(2, 3, 16, 16), "u": torch.tensor([0.5, 0.5]), "keep": [12, 12], "drop": [0, 0]}
    unrounded = model(pictures(2), **given)["velocity"]
    rounded = make().train()(pictures(2), **given)["velocity"]
    assert not torch.allclose(unrounded, rounded)
    torch.testing.assert_close(model.eval()(pictures(2), **given)["velocity"], rounded)


def test_the_autoencoder_stays_frozen_in_fp32_and_moves() -> None:
    model = make("vae").train()
    assert model.training and not model.vae.training
    model.half()
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32} and model.dtype == torch.float16
    model.to("meta")
    assert all(p.is_meta for p in model.vae.parameters())


def test_fresh_models_predict_nothing_and_then_learn() -> None:
    torch.manual_seed(0)
    model = FlexTok(KINDS["pixels"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, losses = pictures(8), []
    for step in range(30):
        out = model(images, generator=torch.Generator().manual_seed(step % 3))
        loss = flow_matching_loss(out["velocity"], out["target"])
        assert step or not out["velocity"].any()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


# Bad input.


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: m.encode(torch.rand(1, 3, 8, 8)), r"takes images \[B, 3, 16, 16\], got \[1, 3, 8, 8\]"),
        (lambda m, t: m.encode(pictures(1), length=0), "1 to 12 tokens, so length=0"),
        (lambda m, t: m.encode(pictures(1), length=13), "length=13"),
        (lambda m, t: m.encode(pictures(1), length=2.5), r"got 2\.5"),
        (lambda m, t: m.decode(t.ids), "takes vistok.Tokens"),
        (lambda m, t: m.decode(t, condition=torch.zeros(1)), "takes no condition"),
        (lambda m, t: m.decode(t, steps=0), "steps=0"),
        (lambda m, t: m.decode(t, steps=2.0), r"steps=2\.0"),
        (lambda m, t: m.decode(t, guidance="strong"), "number or a function"),
        (lambda m, t: m.decode(t, noise=torch.zeros(2, 3, 16, 16)), r"\[1, 3, 16, 16\], got \[2, 3, 16, 16\]"),
        (lambda m, t: m.decode(t, noise=torch.zeros(1, 3, 16, 16), generator=torch.Generator()), "not both"),
        (lambda m, t: m.decode(t.replace(codebook_size=(8, 5, 5))), "codebook"),
        (lambda m, t: m.decode(t.truncate(0)), "1 to 12 tokens"),
        (lambda m, t: m(pictures(2), keep=[1, 13]), "keeps 1 to 12 tokens"),
        (lambda m, t: m(pictures(2), keep=[3]), "one entry an image, 2"),
        (lambda m, t: alignment_loss(torch.zeros(1, 4, 4, 6), torch.zeros(1, 7, 7, 5)), "one batch and number of"),
        (lambda m, t: alignment_loss(torch.zeros(1, 16, 6), torch.zeros(1, 7, 7, 6)), "B, h, w, E"),
    ],
)
def test_bad_input_is_explained(call: Callable[[FlexTok, Tokens], Any], words: str) -> None:
    model = make()
    with pytest.raises(VistokError, match=words):
        call(model, some_tokens(model, [12]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_tokens": 0}, "num_tokens"),
        ({"intermediate_layers": (3,)}, r"0\.\.2"),
        ({"intermediate_layers": (), "repa_dim": 4}, "repa_dim"),
        ({"null_probability": 1.5}, "null_probability"),
        ({"time_features": 5}, "time_features"),
        ({"scaling_factor": 0.0}, "scaling_factor"),
        ({"levels": (1, 3)}, "levels"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FlexTok(replace(BASE, **changes))
    with pytest.raises(ConfigError, match="multiple of head_dim"):
        RegisterTransformerSize(width=30, head_dim=16)
    with pytest.raises(ConfigError, match="norm_groups"):
        KlAutoencoderConfig(block_channels=(8, 12), norm_groups=8)


def test_configurations_read_from_plain_values() -> None:
    for config in KINDS.values():
        assert from_dict(FlexTokConfig, to_dict(config)) == config
    assert from_dict(FlexTokConfig, {"vae": "none"}).channels == 3


# The autoencoder by itself.


def test_the_autoencoder_is_a_continuous_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KlVae(KlVaeConfig(image_size=16, network=VAE)).eval()
    images = pictures(2)
    tokens = model.encode(images)
    assert tokens.latents.shape == (2, 64, 4) and (model.num_tokens, model.codebook_size) == (64, None)
    mean, _ = model.vae.moments(images)
    assert torch.equal(tokens.latents[1, 9], mean[1, :, 1, 1])
    decoded = model.decode(tokens)
    torch.testing.assert_close(decoded, model.vae.decode(mean).clamp(0, 1))
    drawn = model.encode(images, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(drawn.latents, tokens.latents)
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path).decode(tokens), decoded)
    for bad in (
        lambda: model.encode(images, length=3),
        lambda: model.decode(tokens, condition=1),
        lambda: model.decode(tokens.replace(latents=torch.zeros(2, 64, 5))),
        lambda: KlVae(KlVaeConfig(image_size=15, network=VAE)),
    ):
        with pytest.raises(VistokError):
            bad()


@pytest.mark.parametrize("kind", ["vae", "pixels"])
def test_maps_that_are_no_squares(kind: str) -> None:
    model = make(kind, grid_size=(4, 6))
    height, width = model.image_shape
    assert width * 4 == height * 6 and model.image_size == height
    images = nn.functional.interpolate(pictures(2), size=(height, width), mode="bilinear")
    tokens = model.encode(images, length=5)
    assert model.decode(tokens).shape == images.shape
    with pytest.raises(VistokError, match=f"{height}, {width}"):
        model.encode(images.transpose(2, 3))
