"""GigaTok's published names and configurations, and those of its training losses.

The layout tells all sizes but the heads (64 channels each in every published size) and the quantizer's
options, which are read from the published configuration where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import CheckpointError, PublishedConfigError
from vistok.models.gigatok import SIZES, GigaTokConfig
from vistok.models.titok import TransformerSize

_HEAD_WIDTH = 64
_DEFAULT_REPA_DEPTH = 3
_READING, _PLAIN = "TransformerDecoderLayer", "TransformerLayer"
_UNKNOWN_INITS = ("last_level_2d_query_init", "multi_level_2d_query_init")


def _names(config: GigaTokConfig) -> tuple[str, str]:
    """What the two transformers are called."""
    return ("s2to1encoder", "s1to2decoder") if config.layout == "1d" else ("s2dencoder", "s2ddecoder")


def _attention_rules(published: str, ours: str) -> list[Rule]:
    pairs = [
        ("in_proj_weight", "qkv.weight"),
        ("in_proj_bias", "qkv.bias"),
        ("out_proj.*", "proj.*"),
        ("q_proj.*", "query.*"),
        ("k_proj.*", "key.*"),
        ("v_proj.*", "value.*"),
        ("wo.*", "proj.*"),
        ("q_norm.*", "query_norm.*"),
        ("k_norm.*", "key_norm.*"),
    ]
    return [Rule(f"{published}.{left}", f"{ours}.{right}") for left, right in pairs]


def _transformer_rules(config: GigaTokConfig, published: str, ours: str) -> list[Rule]:
    block, own = f"{published}.transformer.{{}}", f"{ours}.blocks.{{}}"
    reads = config.layers == "reading"
    rules = _attention_rules(f"{block}.self_attn", f"{own}.attn")
    other = ".out_proj." if config.qk_norm else ".wo."  # both kinds have one output projection, under different names
    rules = [rule for rule in rules if other not in rule.published]
    if reads:
        rules += [
            Rule(
                rule.published.replace("self_attn", "multihead_attn"),
                rule.ours.replace(".blocks.{}.attn.", ".blocks.{}.read."),
            )
            for rule in rules
        ]
        rules += [Rule(f"{block}.norm2.*", f"{own}.norm_read.*"), Rule(f"{block}.norm3.*", f"{own}.norm2.*")]
    else:
        rules += [Rule(f"{block}.norm2.*", f"{own}.norm2.*")]
    rules += [
        Rule(f"{block}.norm1.*", f"{own}.norm1.*"),
        Rule(f"{block}.linear1.*", f"{own}.mlp.fc1.*"),
        Rule(f"{block}.linear2.*", f"{own}.mlp.fc2.*"),
        Rule(f"{published}.ln_pre.*", f"{ours}.norm_pre.*"),
        Rule(f"{published}.ln_post.*", f"{ours}.norm_post.*"),
        Rule(f"{published}.{ours}_embed.*", f"{ours}.embed.*"),
        Rule(f"{published}.positional_embedding", f"{ours}.pos_embed", "second_axis"),
        Rule(f"{published}.latent_token_positional_embedding", f"{ours}.token_pos_embed", "second_axis"),
        Rule(f"{published}.query_1d", f"{ours}.queries", "second_axis"),
        Rule(f"{published}.global_proj.*", f"{ours}.to_queries.*"),
    ]
    if ours == "decoder":
        rules.append(Rule(f"{published}.distill_mlp.*", "repa_head.*"))
    if config.layout == "1d" and ours == "encoder":
        rules.append(Rule(f"{published}.conv_out.weight", f"{ours}.to_out.weight", "conv1x1"))
        rules.append(Rule(f"{published}.conv_out.bias", f"{ours}.to_out.bias"))
    rules.append(Rule(f"{published}.conv_out.*", f"{ours}.conv_out.*"))
    return rules


def _conv_rules(config: GigaTokConfig, published: str, ours: str) -> list[Rule]:
    levels = len(config.multipliers)
    pairs: list[tuple[str, str]] = []
    for level in range(levels):
        encodes = published == "encoder"
        own = level if encodes else levels - 1 - level  # published decoders count from the smallest size
        block = f"conv_blocks.{level}"
        pairs += [
            (f"{block}.res.{{}}.nin_shortcut.*", f"{'down' if encodes else 'up'}.{own}.{{}}.shortcut.*"),
            (f"{block}.res.{{}}.*", f"{'down' if encodes else 'up'}.{own}.{{}}.*"),
            (f"{block}.downsample.conv.*", f"downsample.{own}.*"),
            (
                f"{block}.upsample.{'conv1' if config.upsample == 'depth_to_space' else 'conv'}.*",
                f"upsample.{own - 1}.*",
            ),
            (f"adaptive.{level}.gamma.*", f"adaptive.{own}.scale.*"),
            (f"adaptive.{level}.beta.*", f"adaptive.{own}.shift.*"),
        ]
        if level == (levels - 1 if encodes else 0):
            pairs += _attention_pairs(f"{block}.attn.{{}}", "attention.{}")
    if config.conv_attention:  # published middles count it as the second of three
        pairs += [*_attention_pairs("mid.1", "mid_attention"), ("mid.0.*", "mid.0.*"), ("mid.2.*", "mid.1.*")]
    pairs += [(f"{name}.*", f"{name}.*") for name in ("conv_in", "mid", "norm_out", "conv_out")]
    return [Rule(f"{published}.{left}", f"{ours}.{right}") for left, right in pairs]


def _attention_pairs(published: str, ours: str) -> list[tuple[str, str]]:
    names = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj"}
    return [(f"{published}.{left}.*", f"{ours}.{right}.*") for left, right in names.items()]


def _key_map(config: GigaTokConfig) -> KeyMap:
    encoder, decoder = _names(config)
    return KeyMap(
        [
            *_conv_rules(config, "encoder", "conv_encoder"),
            *_conv_rules(config, "decoder", "conv_decoder"),
            *_transformer_rules(config, encoder, "encoder"),
            *_transformer_rules(config, decoder, "decoder"),
            Rule("quant_conv.weight", "to_latents.weight", "conv1x1"),
            Rule("quant_conv.bias", "to_latents.bias"),
            Rule("post_quant_conv.weight", "from_latents.weight", "conv1x1"),
            Rule("post_quant_conv.bias", "from_latents.bias"),
            Rule("quantize.embedding.weight", "quantizer.codebook"),
            Rule("quantize.codebook_used", "recent_ids"),
        ]
    )


def _read_config(
    shapes: Shapes,
    published: Mapping[str, Any] | None = None,
    *,
    image_size: int | None = None,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> GigaTokConfig:
    """Our configuration of a published checkpoint.

    Args:
        shapes: of its tensors.
        published: its configuration, in any nesting that has the model's arguments.
        image_size: what is expected of the position table, which tells.
        sizes: width, layers and heads of sizes with names of their own.
    """
    found = find_key(published, "init_args")
    args: Mapping[str, Any] = found if isinstance(found, Mapping) else published or {}
    _check_published(args, published)
    layout = "1d" if "s2to1encoder.ln_pre.weight" in shapes else "2d"
    encoder, decoder = ("s2to1encoder", "s1to2decoder") if layout == "1d" else ("s2dencoder", "s2ddecoder")
    levels = count(shapes, r"encoder\.conv_blocks\.(\d+)\.")
    grid = math.isqrt(shapes[f"{encoder}.positional_embedding"][0])
    size = grid * 2 ** (levels - 1)
    if image_size not in (None, size):
        raise CheckpointError(f"this GigaTok checkpoint is for {size}-pixel images, and {image_size} was asked for")
    base = shapes["encoder.conv_in.weight"][0]
    codebook_size, code_dim = shapes["quantize.embedding.weight"]
    enc, dec = (
        _size(shapes, side, args.get(f"{key}_size") or args.get("model_size"), sizes)
        for side, key in ((encoder, "encoder"), (decoder, "decoder"))
    )
    reads = f"{encoder}.transformer.0.norm3.weight" in shapes
    return GigaTokConfig(
        image_size=size,
        layout=layout,
        base_channels=base,
        multipliers=_multipliers(shapes, "encoder", base),
        decoder_multipliers=_multipliers(shapes, "decoder", base)[::-1],
        num_blocks=count(shapes, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        map_channels=shapes["encoder.conv_out.weight"][0],
        conv_attention="encoder.mid.2.norm1.weight" in shapes,
        adaptive_norm="decoder.adaptive.0.gamma.weight" in shapes,
        upsample="nearest" if "decoder.conv_blocks.0.upsample.conv.weight" in shapes else "depth_to_space",
        encoder=enc,
        decoder=dec,
        num_tokens=shapes[f"{encoder}.latent_token_positional_embedding"][0] if layout == "1d" else grid**2,
        query_init=_query_init(shapes, args),
        layers="reading" if reads else "plain",
        qk_norm=f"{encoder}.transformer.0.self_attn.q_norm.weight" in shapes,
        codebook_size=codebook_size,
        code_dim=code_dim,
        l2_norm=bool(args.get("codebook_l2_norm", True)),
        commitment_cost=float(args.get("commit_loss_beta", 0.25)),
        gradient="rotation" if args.get("rot", True) else "straight_through",
        entropy_weight=float(args.get("entropy_loss_ratio", 0.0)),
        repa_dim=shapes.get(f"{decoder}.distill_mlp.4.weight", (0,))[0],
        repa_depth=int(args.get("distill_depth", min(_DEFAULT_REPA_DEPTH, _depth(shapes, decoder)))),
        usage_window=shapes.get("quantize.codebook_used", (0,))[0],
    )


def _check_published(args: Mapping[str, Any], published: Mapping[str, Any] | None) -> None:
    """Raise a ``PublishedConfigError`` for settings that no published model has and the layout does not tell."""
    for key in _UNKNOWN_INITS:
        if args.get(key):
            raise PublishedConfigError(f"GigaTok's {key} is not known to vistok; no published model has it")
    if find_key(published, "causal_type"):
        raise PublishedConfigError("GigaTok's causal training is not known to vistok; no published model has it")


def _query_init(shapes: Shapes, args: Mapping[str, Any]) -> str:
    if "s2to1encoder.query_1d" in shapes:
        return "learned"
    return "pyramid" if args.get("multi_level_query_init", True) else "mean"


def _multipliers(shapes: Shapes, side: str, base: int) -> tuple[int, ...]:
    levels = count(shapes, rf"{side}\.conv_blocks\.(\d+)\.")
    return tuple(shapes[f"{side}.conv_blocks.{level}.res.0.conv1.weight"][0] // base for level in range(levels))


def _depth(shapes: Shapes, side: str) -> int:
    return count(shapes, rf"{side}\.transformer\.(\d+)\.")


def _size(
    shapes: Shapes, side: str, name: str | Mapping[str, int] | None, sizes: Mapping[str, Mapping[str, int]] | None
) -> str | TransformerSize:
    """One side's size; its heads, which only a norm's shape tells, from the configuration or the published heads' width."""
    width = shapes[f"{side}.ln_post.weight"][0]
    known = name if isinstance(name, Mapping) else (sizes or {}).get(name or "")
    head = shapes.get(f"{side}.transformer.0.self_attn.q_norm.weight")
    heads = width // head[0] if head else known["heads"] if known else max(1, width // _HEAD_WIDTH)
    size = TransformerSize(width, _depth(shapes, side), heads)
    return next((key for key in SIZES if SIZES[key] == size), size)


def _wrap_config(config: GigaTokConfig) -> dict[str, Any]:
    """The published configuration; what the layout itself tells (convolutions, image size) is not part of it."""
    args: dict[str, Any] = {
        "codebook_size": config.codebook_size,
        "codebook_embed_dim": config.code_dim,
        "codebook_l2_norm": config.l2_norm,
        "codebook_show_usage": config.usage_window > 0,
        "commit_loss_beta": config.commitment_cost,
        "entropy_loss_ratio": config.entropy_weight,
        "encoder_ch_mult": list(config.multipliers),
        "decoder_ch_mult": list(config.decoder_multipliers),
        "model_size": None,
        "encoder_size": _published_size(config.encoder),
        "decoder_size": _published_size(config.decoder),
        "num_latent_tokens": config.num_tokens,
        "z_channels": config.map_channels,
        "dropout_p": 0.0,
        "adaptive_gn": config.adaptive_norm,
        "d2s_up": config.upsample == "depth_to_space",
        "rot": config.gradient == "rotation",
        "use_attn": config.conv_attention,
        "use_qk_norm": config.qk_norm,
        "fea_rec_loss_type": "mse",
        "fea_rec_loss_weight": 1.0,
        "distill_depth": config.repa_depth,
        "out_inner_dim": config.repa_dim or 768,
    }
    if config.layout == "1d":
        args["multi_level_query_init"] = config.query_init == "pyramid"
        args["learnable_1d_query_init"] = config.query_init == "learned"
    else:
        args["transformer_layer_type"] = _READING if config.layers == "reading" else _PLAIN
    cls = "VQVitModelPlus" if config.layout == "1d" else "VQVitModel2DPlus"
    return {"model": {"model_cls": cls, "init_args": args}}


def _published_size(size: str | TransformerSize) -> str | dict[str, int]:
    """A published name where there is one; else, as no published code has it, the numbers."""
    if isinstance(size, str):
        return size
    return {"width": size.width, "layers": size.depth, "heads": size.num_heads}


def _source(title: str, signature: str) -> Source:
    return Source(
        title=title,
        family="gigatok",
        signature=frozenset({f"{signature}.ln_pre.weight", "quantize.embedding.weight", "encoder.conv_in.weight"}),
        read_config=_read_config,
        key_map=_key_map,
        wrap_config=_wrap_config,
    )


GIGATOK = _source("GigaTok (VQ_*256_*.pt of YuuTennYi/GigaTok)", "s2to1encoder")
GIGATOK_2D = _source("GigaTok on a grid (VQ_*256_2d)", "s2dencoder")

DISCRIMINATOR_KEYS = KeyMap([Rule("main.*", "layers.*")])
