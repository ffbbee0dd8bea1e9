"""TiTok's, TA-TiTok's and One-D-Piece's published names and configurations, and those of their training losses.

The layout tells nearly all of the configuration; what shapes cannot tell (heads, normalisation,
commitment) is read from the published configuration where there is one, and else is what every
published checkpoint of that layout has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.convert.maskgit_vqgan import decoder_config, decoder_rules
from vistok.errors import CheckpointError, ConfigError
from vistok.models.maskgit_vqgan import MaskGitVqganConfig
from vistok.models.titok import SIZES, TiTokConfig, TransformerSize

_HEAD_WIDTH = 64
_ONE_D_PIECE = "one_d_piece"  # the model's type in its configuration; the tensors are those of two-stage TiTok
_ONE_D_PIECE_TOKENS = 256  # no two-stage TiTok has so many
_PUBLISHED_SIZES = ("small", "base", "large")


def _block_rules(side: str) -> list[Rule]:
    pairs = [
        ("ln_1.*", "norm1.*"),
        ("ln_2.*", "norm2.*"),
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.*", "attn.proj.*"),
        ("mlp.c_fc.*", "mlp.fc1.*"),
        ("mlp.c_proj.*", "mlp.fc2.*"),
    ]
    block = [(f"transformer.{{}}.{left}", f"transformer.blocks.{{}}.{right}") for left, right in pairs]
    block += [("ln_pre.*", "norm_pre.*"), ("ln_post.*", "norm_post.*")]
    rules = [Rule(f"{side}.{left}", f"{side}.{right}") for left, right in block]
    tables = [
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("latent_token_positional_embedding", "latent_pos_embed"),
    ]
    return rules + [Rule(f"{side}.{left}", f"{side}.{right}", "row") for left, right in tables]


_COMMON = [
    *_block_rules("encoder"),
    *_block_rules("decoder"),
    Rule("latent_tokens", "encoder.latent_tokens", "row"),
    Rule("encoder.patch_embed.*", "encoder.patch_embed.*"),
    Rule("encoder.conv_out.weight", "to_latents.weight", "conv1x1"),
    Rule("encoder.conv_out.bias", "to_latents.bias"),
    Rule("quantize.embedding.weight", "quantizer.codebook"),
    Rule("quantize.embed_prob", "quantizer.usage"),
    Rule("decoder.mask_token", "decoder.mask_token"),
    Rule("decoder.decoder_embed.*", "decoder.latent_embed.*"),
    Rule("decoder.text_guidance_proj.*", "decoder.text_embed.*"),
    Rule("decoder.text_guidance_positional_embedding", "decoder.text_pos_embed", "row"),
]
_PIXEL_HEAD = [
    Rule("decoder.ffn.0.weight", "to_patches.weight", "conv1x1"),
    Rule("decoder.ffn.0.bias", "to_patches.bias"),
    Rule("decoder.conv_out.*", "conv_out.*"),
]
_PROXY_HEAD = [
    Rule("decoder.ffn.{}.weight", "to_logits.{}.weight", "conv1x1"),
    Rule("decoder.ffn.{}.bias", "to_logits.{}.bias"),
    Rule("pixel_quantize.embedding.weight", "pixel_codebook"),
    *decoder_rules("pixel_decoder.", "pixel_decoder."),
]


def _key_map(config: TiTokConfig) -> KeyMap:
    return KeyMap(_COMMON + (_PIXEL_HEAD if config.head == "pixels" else _PROXY_HEAD))


def _read_config(
    shapes: Shapes,
    published: Mapping[str, Any] | None = None,
    *,
    image_size: int | None = None,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> TiTokConfig:
    """Our configuration of a published checkpoint.

    Args:
        shapes: of its tensors.
        published: its configuration, in any nesting that has a ``vq_model`` part.
        image_size: where neither tells; default: from the position table.
        sizes: width, layers and heads of sizes with names of their own.
    """
    vq_model = find_key(published, "vq_model")
    vq_model = vq_model if isinstance(vq_model, Mapping) else {}
    model = find_key(published, "model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    legacy = "decoder.ffn.2.weight" in shapes
    quantizer = "vq" if "quantize.embedding.weight" in shapes else "gaussian"
    channels = shapes["encoder.conv_out.weight"][0]
    patch = shapes["encoder.patch_embed.weight"][-1]
    size = patch * math.isqrt(shapes["encoder.positional_embedding"][0] - 1)
    if image_size not in (None, size):
        raise CheckpointError(f"this TiTok checkpoint is for {size}-pixel images, and {image_size} was asked for")
    grid = math.isqrt(shapes["decoder.positional_embedding"][0] - 1)
    head = "vqgan" if "pixel_quantize.embedding.weight" in shapes else "proxy" if legacy else "pixels"
    values: dict[str, Any] = {}
    if kind == _ONE_D_PIECE or (not published and legacy and shapes["latent_tokens"][0] == _ONE_D_PIECE_TOKENS):
        values["tail_drop"] = "uniform"
    if quantizer == "vq":
        values["codebook_size"] = shapes["quantize.embedding.weight"][0]
        values["l2_norm"] = bool(vq_model.get("use_l2_norm", legacy))
        values["commitment_cost"] = float(vq_model.get("commitment_cost", 0.25))
        values["cluster"] = "quantize.embed_prob" in shapes
    if head == "vqgan":
        values["vqgan"] = decoder_config(shapes, "pixel_decoder.", "pixel_quantize.embedding.weight", size)
    elif head == "proxy":
        values["vqgan"] = MaskGitVqganConfig(image_size=size, codebook_size=shapes["decoder.ffn.2.weight"][0])
    if "decoder.text_guidance_proj.weight" in shapes:
        values["text_length"] = shapes["decoder.text_guidance_positional_embedding"][0]
        values["text_dim"] = shapes["decoder.text_guidance_proj.weight"][1]
    return TiTokConfig(
        image_size=size,
        patch_size=patch,
        decoder_patch_size=size // grid,
        encoder=_size(shapes, "encoder", vq_model.get("vit_enc_model_size"), sizes),
        decoder=_size(shapes, "decoder", vq_model.get("vit_dec_model_size"), sizes),
        num_tokens=shapes["latent_tokens"][0],
        quantizer=quantizer,
        code_dim=channels // 2 if quantizer == "gaussian" else channels,
        head=head,
        legacy_layout=bool(vq_model.get("is_legacy", legacy)),
        **values,
    )


def _size(
    shapes: Shapes, side: str, name: str | Mapping[str, int] | None, sizes: Mapping[str, Mapping[str, int]] | None
) -> str | TransformerSize:
    """One side's size; its heads, which shapes do not tell, from the configuration or the published heads' width."""
    width = shapes[f"{side}.ln_pre.weight"][0]
    depth = count(shapes, rf"{side}\.transformer\.(\d+)\.")
    known = name if isinstance(name, Mapping) else (sizes or {}).get(name or "")
    size = TransformerSize(width, depth, known["heads"] if known else max(1, width // _HEAD_WIDTH))
    return next((key for key in _PUBLISHED_SIZES if SIZES[key] == size), size)


def _wrap_config(config: TiTokConfig) -> dict[str, Any]:
    """The published configuration.

    Raises:
        ConfigError: an option that the published layout cannot tell.
    """
    if config.quantizer == "fsq" or config.tail_drop == "log_uniform" or config.init != "random":
        raise ConfigError(
            "quantizer: fsq, tail_drop: log_uniform and init: linear, linear_mixed or progressive are not part of it"
        )
    if config.tail_drop == "uniform" and (config.head == "pixels" or config.quantizer != "vq"):
        raise ConfigError("in it, tail_drop: uniform (One-D-Piece) goes with vq and the heads proxy and vqgan")
    if config.legacy_layout != (config.head != "pixels"):
        raise ConfigError("in it, legacy_layout goes with the heads proxy and vqgan, and only with them")
    vq_model = {
        "quantize_mode": "vae" if config.quantizer == "gaussian" else "vq",
        "codebook_size": config.codebook_size,
        "token_size": config.code_dim,
        "use_l2_norm": config.l2_norm,
        "commitment_cost": config.commitment_cost,
        "clustering_vq": config.cluster,
        "vit_enc_model_size": _published_size(config, "encoder"),
        "vit_dec_model_size": _published_size(config, "decoder"),
        "vit_enc_patch_size": config.patch_size,
        "vit_dec_patch_size": config.decoder_patch_size,
        "num_latent_tokens": config.num_tokens,
        "finetune_decoder": config.head == "vqgan",
        "is_legacy": config.head != "pixels",
    }
    if config.text_length:
        vq_model |= {"text_context_length": config.text_length, "text_embed_dim": config.text_dim}
    model: dict[str, Any] = {"vq_model": vq_model}
    if config.tail_drop == "uniform":
        vq_model["strict_length_assertion"] = False
        model["type"] = _ONE_D_PIECE
    return {"model": model, "dataset": {"preprocessing": {"crop_size": config.image_size}}}


def _published_size(config: TiTokConfig, side: Literal["encoder", "decoder"]) -> str | dict[str, int]:
    """A published name where there is one; else, as no published code has it, the numbers."""
    size = config.size(side)
    numbers = {"width": size.width, "layers": size.depth, "heads": size.num_heads}
    return next((key for key in _PUBLISHED_SIZES if SIZES[key] == size), numbers)


TITOK = Source(
    title="TiTok, TA-TiTok and One-D-Piece (yucornetto/tokenizer_titok_*, turkeyju/tokenizer_tatitok_*, "
    "turing-motors/One-D-Piece-*)",
    family="titok",
    signature=frozenset({"latent_tokens", "encoder.class_embedding", "decoder.decoder_embed.weight"}),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
)

DISCRIMINATOR_KEYS = KeyMap(
    [
        Rule("block_in.0.*", "conv_in.*"),
        Rule("blocks.{}.{}.*", "stages.{}.{}.*"),
        Rule("to_logits.*", "to_logits.*"),
    ]
)
PERCEPTUAL_KEYS = KeyMap(
    [
        *(Rule(f"lpips.net.slice{i + 1}.*", f"networks.lpips.slices.{i}.*") for i in range(5)),
        Rule("lpips.lin{}.model.1.weight", "networks.lpips.heads.{}", "channels"),
        Rule("lpips.scaling_layer.shift", "networks.lpips.shift", "image"),
        Rule("lpips.scaling_layer.scale", "networks.lpips.scale", "image"),
        Rule("imagenet_mean", "networks.convnext_s.mean", "image"),
        Rule("imagenet_std", "networks.convnext_s.std", "image"),
        Rule("convnext.*", "networks.convnext_s.network.*"),
    ]
)
