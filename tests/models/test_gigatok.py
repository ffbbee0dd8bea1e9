"""GigaTok: its layouts and options, its layers against plain computations, training outputs, features, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from vistok.config import from_dict, to_dict
from vistok.errors import ConfigError, VistokError
from vistok.hub import empty_model, from_pretrained
from vistok.layers.conv import AdaptiveGroupNorm, ConvAttention, ConvDecoder, ConvEncoder, DepthToSpaceConv
from vistok.layers.query_transformer import MapToTokens, ReadAttention, pyramid_cells
from vistok.models.gigatok import SIZES, GigaTok, GigaTokConfig
from vistok.models.titok import TransformerSize
from vistok.registry import get_card, list_models
from vistok.tokens import Tokens

BASE = GigaTokConfig(
    image_size=16,
    base_channels=32,
    multipliers=(1, 2),
    decoder_multipliers=(1, 2),
    num_blocks=1,
    map_channels=8,
    encoder=TransformerSize(32, 2, 2),
    decoder=TransformerSize(48, 3, 3),
    num_tokens=16,
    codebook_size=50,
    code_dim=4,
    repa_dim=6,
    repa_depth=2,
    usage_window=0,
)
GRID = replace(BASE, layout="2d", num_tokens=64)
KINDS = {
    "1d": BASE,
    "1d_plain_options": replace(
        BASE, adaptive_norm=False, upsample="nearest", query_init="mean", gradient="straight_through", repa_dim=0
    ),
    "1d_attention": replace(BASE, conv_attention=True, query_init="learned", num_tokens=5, num_blocks=2),
    "1d_qk_norm": replace(BASE, qk_norm=True, l2_norm=False, usage_window=32),
    "2d_reading": GRID,
    "2d_plain": replace(GRID, layers="plain", qk_norm=True, entropy_weight=0.1),
}


def make(kind: str = "1d", **changes: Any) -> GigaTok:
    torch.manual_seed(0)
    model = GigaTok(replace(KINDS[kind], **changes)).eval()
    with torch.no_grad():  # fresh weights are so small that every token is the same
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                table = name.endswith(("pos_embed", "queries"))
                nn.init.normal_(parameter, std=1.0 if table else parameter[0].numel() ** -0.5)
    return model


def pictures(count: int, seed: int = 0) -> Tensor:
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=True)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# The contract.


def test_there_and_back_and_independent_of_the_batch(kind: str) -> None:
    model, images = make(kind), pictures(3)
    tokens = model.encode(images)
    assert tokens.ids.shape == (3, model.num_tokens) and tokens.ids.dtype == torch.int64
    assert tokens.family == "gigatok" and tokens.codebook_size == 50 and len(tokens.ids.unique()) > 2
    decoded = model.decode(tokens)
    assert decoded.shape == (3, 3, 16, 16) and 0.0 <= float(decoded.min()) and float(decoded.max()) <= 1.0
    for row in range(3):
        assert model.encode(images[row : row + 1]) == tokens[row]
        torch.testing.assert_close(model.decode(tokens[row])[0], decoded[row], rtol=1e-4, atol=1e-5)
    assert not (model.ordered or model.adaptive or model.continuous or model.conditional)


def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model, images = make(kind), pictures(2)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config == from_dict(GigaTokConfig, to_dict(model.config))
    assert again.weight_hash() == model.weight_hash() and again.encode(images) == model.encode(images)


def test_gradients_reach_every_parameter(kind: str) -> None:
    model = make(kind).train()
    out = model(pictures(3), direct=True, match_map=True)
    total = out["reconstruction"].square().mean() + out["direct"].square().mean() + out["map_error"]
    total = total + sum(value for key, value in out.items() if key.startswith("loss_"))
    if "projected" in out:
        total = total + out["projected"].square().mean()
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    grads = []
    for enabled in (False, True):
        model = make(kind).train()
        model.set_gradient_checkpointing(enabled)
        model(pictures(2))["reconstruction"].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    flags = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert len(flags) == 4 and all(module.gradient_checkpointing for module in flags)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_training_outputs(kind: str) -> None:
    model, images = make(kind), pictures(2)
    out = model(images, direct=True, match_map=True)
    tokens = model.encode(images)
    assert torch.equal(out["ids"], tokens.ids)
    torch.testing.assert_close(out["reconstruction"].clamp(0, 1), model.decode(tokens), rtol=1e-4, atol=1e-5)
    own_map = model.encode_map(images)
    torch.testing.assert_close(out["direct"], model.map_to_pixels(own_map))
    grid, inner = model.decode_map(model.quantizer(model.encode_latents(images)).latents)
    torch.testing.assert_close(out["map_error"], F.mse_loss(grid, own_map))
    assert ("projected" in out) == (model.config.repa_dim > 0)
    if model.config.repa_dim:
        assert out["projected"].shape == (2, 8, 8, 6)
        torch.testing.assert_close(out["projected"].flatten(1, 2), model.repa_head(inner))
    plain = model(images)
    assert "direct" not in plain and "map_error" not in plain
    assert ("loss_entropy" in model.train()(images)) == (model.config.entropy_weight > 0)


def test_features(kind: str) -> None:
    model, images = make(kind), pictures(2)
    for part, width, places in (("encoder", 32, model.num_tokens), ("decoder", 48, 64)):
        whole = model.features(images, part=part, pool=False)
        assert whole.shape == (2, places, width) and not whole.requires_grad
        torch.testing.assert_close(model.features(images, part=part), whole.mean(dim=1))
    _, inner = model.decode_map(model.quantizer(model.encode_latents(images)).latents)
    torch.testing.assert_close(model.features(images, part="decoder", pool=False), inner)


def test_every_place_starts_from_the_first_token() -> None:
    model = make(decoder=TransformerSize(48, 1, 3), repa_depth=1)
    latents = torch.randn(1, 16, 4)
    queries, _ = model.decoder._start(model.from_latents(latents))
    assert queries.shape == (1, 64, 48) and torch.equal(queries, queries[:, :1].expand(-1, 64, -1))
    changed = latents.clone()
    changed[:, 1:] = 0.0
    assert torch.equal(model.decoder._start(model.from_latents(changed))[0], queries)


def test_the_map_error_does_not_move_the_convolutions() -> None:
    model = make().train()
    model(pictures(2), match_map=True)["map_error"].backward(inputs=[model.decoder.conv_out.weight])
    assert model.decoder.conv_out.weight.grad.any()
    model.quantizer.gradient = "straight_through"
    model.from_latents.requires_grad_(False).weight.zero_()  # nothing of the map comes from the encoder now
    model.zero_grad()
    model(pictures(2), match_map=True)["map_error"].backward()
    grad = model.conv_encoder.conv_in.weight.grad
    assert grad is None or not grad.any()


def test_low_precision(kind: str) -> None:
    model = make(kind)
    ids = model.encode(pictures(2)).ids
    low = model.to(torch.bfloat16)
    tokens = low.encode(pictures(2))
    assert tokens.ids.shape == ids.shape and low.decode(tokens).dtype == torch.float32


def test_fresh_models_have_the_published_initialisation() -> None:
    torch.manual_seed(0)
    model = GigaTok(replace(BASE, encoder=TransformerSize(256, 1, 4)))
    assert abs(float(model.encoder.blocks[0].mlp.fc1.weight.detach().std()) - 0.02) < 1e-3
    assert abs(float(model.encoder.pos_embed.detach().std()) - 256**-0.5) < 5e-3
    torch.testing.assert_close(model.quantizer.codebook.norm(dim=-1), torch.ones(50))
    biases = [p for name, p in model.named_parameters() if name.endswith("bias") and "latents" not in name]
    assert biases and not any(bias.any() for bias in biases)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"layout": "2d", "num_tokens": 64}])
def test_the_house_initialisation_attends_to_what_is_near(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GigaTok(replace(BASE, init="local", **changes)).eval()
    place = model.decoder.pos_embed
    attention = model.decoder.blocks[0].attn
    if attention.qk_norm:
        query, key = attention.query(place), attention.key(place)
    else:
        query, key, _ = attention.qkv(place).chunk(3, dim=-1)
    logits = (query @ key.transpose(1, 2))[0]
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    steps = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()
    nearness = [float(logits[steps == count].mean().detach()) for count in (0, 1, 3, 6)]
    assert nearness == sorted(nearness, reverse=True) and nearness[0] > 0.0
    if model.config.layout == "1d":
        last = rearrange(model.decoder.token_pos_embed[:, -8:], "b (r c) d -> b d r c", r=2)
        wanted = reduce(rearrange(place, "b (h w) d -> b d h w", h=8), "b d (r h) (c w) -> b d r c", "mean", r=2, c=4)
        torch.testing.assert_close(last, wanted)
    assert 0.4 < float(model.decode(model.encode(pictures(2))).mean()) < 0.6


@pytest.mark.parametrize(
    ("short", "millions"),
    [
        ("ss", 136.1),
        ("sb", 232.5),
        ("bl", 621.7),
        ("xlxxl", 2894.0),
        ("ss_2d", 135.6),
        ("sb_2d", 197.2),
        ("bl_2d", 491.5),
    ],
)
def test_published_sizes_without_their_memory(short: str, millions: float) -> None:
    card = get_card(f"gigatok_{short}_256.imagenet")
    model = empty_model(GigaTok, from_dict(GigaTokConfig, card.config))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert round(sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6, 1) == millions


def test_all_names_are_listed() -> None:
    assert len(list_models("gigatok_*_256.imagenet")) == 8 and len(SIZES) == 7


# Layers against plain computations.


def test_depth_to_space_and_its_order() -> None:
    layer = DepthToSpaceConv(4)
    x = torch.randn(2, 4, 3, 5)
    wanted = rearrange(F.conv2d(x, layer.weight, layer.bias, padding=1), "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)
    assert torch.equal(layer(x), wanted)


def test_attention_among_convolutions() -> None:
    layer = ConvAttention(32)
    x = torch.randn(2, 32, 3, 4)
    query, key, value = (
        rearrange(part(layer.norm(x)), "b c h w -> b (h w) c") for part in (layer.query, layer.key, layer.value)
    )
    out = (query @ key.transpose(1, 2) * 32**-0.5).softmax(dim=-1) @ value
    wanted = x + layer.proj(rearrange(out, "b (h w) c -> b c h w", h=3))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_adaptive_norm() -> None:
    layer, x, z = AdaptiveGroupNorm(64, 6), torch.randn(2, 64, 4, 4), torch.randn(2, 6, 2, 2)
    scale = layer.scale((z.flatten(2).var(dim=-1, correction=1) + 1e-6).sqrt())
    shift = layer.shift(z.mean(dim=(2, 3)))
    wanted = F.group_norm(x, 32, eps=1e-6) * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(layer(x, *layer.statistics(z)), wanted)


def test_strided_levels_pad_right_and_below() -> None:
    encoder = ConvEncoder(32, (1, 1, 1), 1, 8, downsample="conv", bias=True, shortcut="input", out_kernel=3)
    assert encoder(torch.rand(1, 3, 16, 24)).shape == (1, 8, 4, 6)
    layer, x = encoder.downsample[0], torch.randn(1, 32, 4, 4)
    padded = torch.cat([torch.cat([x, x.new_zeros(1, 32, 1, 4)], 2), x.new_zeros(1, 32, 5, 1)], 3)
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight, layer.bias, stride=2))
    decoder = ConvDecoder(32, (1, 1, 1), 1, 8, upsample="depth_to_space", adaptive_norm=True, attention=True)
    assert decoder(torch.rand(1, 8, 4, 6)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("base", [32, 128])
def test_stacks_without_gradients_are_as_exact_as_with(base: int) -> None:
    """The layout that a CPU is quickest in has a norm that loses digits where groups are narrow."""
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder(base, (1, 2), 1, 8), ConvDecoder(base, (1, 2), 1, 8)
    x = torch.rand(1, 3, 64, 64) + 2.0
    for module, given in ((encoder, x), (decoder, torch.randn(1, 8, 32, 32))):
        with torch.no_grad():
            quick = module(given)
            exact = module.double()(given.double())
        assert float((quick - exact).abs().max()) < 2e-5 * float(exact.abs().max())


def test_reading_attention_is_torchs() -> None:
    layer, theirs = ReadAttention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.proj.weight,
            "out_proj.bias": layer.proj.bias,
        }
    )
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    torch.testing.assert_close(layer(query, key, value), theirs(query, key, value)[0])
    torch.testing.assert_close(layer(key, key, value), theirs(key, key, value)[0])


def test_pyramid_queries_are_means_of_parts() -> None:
    assert pyramid_cells(16) == [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4)] and pyramid_cells(1) == [(1, 1)]
    layer = MapToTokens(8, 8, grid_size=8, num_tokens=16, width=12, depth=1, num_heads=2)
    memory = torch.randn(2, 64, 12)
    grid = rearrange(memory, "b (h w) d -> b h w d", h=8)
    means = [
        reduce(grid, "b (r h) (c w) d -> b (r c) d", "mean", r=r, c=c)
        for r, c in ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4))
    ]
    torch.testing.assert_close(layer._queries(memory), layer.to_queries(torch.cat(means, dim=1)))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_channels": 48}, "multiple of 32"),
        ({"image_size": 17}, "multiple of 2"),
        ({"encoder": "smal"}, "did you mean small"),
        ({"repa_depth": 4}, "1 to the decoder's 3 blocks"),
        ({"num_tokens": 12}, "power of two"),
        ({"num_tokens": 512}, "cannot be cut"),
        ({"layout": "2d"}, "set num_tokens 64, got 16"),
        ({"layers": "plain"}, "a sequence has to read"),
        ({"decoder_multipliers": (1, 2, 2)}, "as many levels"),
        ({"init": "local", "query_init": "mean"}, "places tokens by their pyramid"),
        ({"init": "local", "encoder": TransformerSize(30, 1, 2)}, "multiples of four"),
        ({"codebook_size": 0}, "codebook_size is at least 1"),
        ({"entropy_weight": -1.0}, "entropy_weight is not negative"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(BASE, **changes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: m.encode(torch.rand(1, 3, 8, 8)), r"takes images \[B, 3, 16, 16\], got \[1, 3, 8, 8\]"),
        (lambda m, t: m.encode(pictures(1), length=3), "always gives 16 tokens"),
        (lambda m, t: m.decode(t.truncate(3)), "fixed length of 16"),
        (lambda m, t: m.decode(t.ids), "takes vistok.Tokens"),
        (lambda m, t: m.decode(t, condition=torch.zeros(1)), "takes no condition"),
        (lambda m, t: m.features(pictures(1), part="middle"), "not of 'middle'"),
        (lambda m, t: m.features(torch.rand(1, 3, 8, 8)), "takes images"),
    ],
)
def test_bad_input_is_explained(call: Callable[[GigaTok, Tokens], Any], words: str) -> None:
    model = make()
    with pytest.raises(VistokError, match=words):
        call(model, model.encode(pictures(1)))
