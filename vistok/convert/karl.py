"""KARL's and ALIT's published names (the ``ema`` entry of their .pth files), and those of their training losses.

There is no published configuration file: shapes tell all but the heads, which are those of the published sizes
(128 a head at width 1024 and depth 8, else 64). A mapping with the names of the published constructors tells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.convert.ldm_kl import codec_rules, kl_config
from vistok.convert.maskgit_vqgan import decoder_config
from vistok.errors import CheckpointError, ConfigError
from vistok.models.grid_base import BaseKind
from vistok.models.karl import ERRORS, KarlConfig
from vistok.models.ldm_kl import LdmKlConfig
from vistok.models.titok import TransformerSize


def block_rules(published: str, ours: str) -> list[Rule]:
    """Rules of a transformer's blocks."""
    pairs = [
        ("ln_1.*", "norm1.*"),
        ("ln_2.*", "norm2.*"),
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.*", "attn.proj.*"),
        ("mlp.c_fc.*", "mlp.fc1.*"),
        ("mlp.c_proj.*", "mlp.fc2.*"),
    ]
    return [Rule(f"{published}.{{}}.{left}", f"{ours}.blocks.{{}}.{right}") for left, right in pairs]


def base_rules(base: BaseKind, kl: LdmKlConfig) -> list[Rule]:
    """Rules of the grid tokenizer inside a checkpoint."""
    published = {"vqgan": "base_tokenizer.vqgan.", "kl": "base_tokenizer.vae."}[base]
    return codec_rules(published, "base.codec.", levels=len(kl.multipliers))


def read_base(shapes: Shapes, image_size: int | None) -> dict[str, Any]:
    """``base``, its sizes, ``image_size`` and ``patch_size`` of a checkpoint."""
    kl = "base_tokenizer.vae.quant_conv.weight" in shapes
    prefix = "base_tokenizer.vae." if kl else "base_tokenizer.vqgan."
    patch = shapes["patch_embed.weight"][-1]
    size = image_size or 16 * patch
    values: dict[str, Any] = {"base": "kl" if kl else "vqgan", "image_size": size, "patch_size": patch}
    if kl:
        return values | {"kl": kl_config(shapes, prefix, size, pixels="unit")}
    codebook = f"{prefix}quantize.embedding.weight"
    return values | {"vqgan": decoder_config(shapes, f"{prefix}decoder.", codebook, size)}


def read_size(shapes: Shapes, side: str, published: Mapping[str, Any] | None) -> TransformerSize:
    """One side's size."""
    width = shapes[f"{side}.transformer.0.ln_1.weight"][0]
    depth = count(shapes, rf"{side}\.transformer\.(\d+)\.")
    heads = find_key(published, f"{side}_num_heads")
    # Published sizes have as many heads as layers.
    return TransformerSize(width, depth, int(heads) if heads else depth if width % depth == 0 else max(1, width // 64))


def read_quantizer(shapes: Shapes, published: Mapping[str, Any] | None) -> dict[str, Any]:
    """``quantizer`` and its sizes."""
    codebook = shapes.get("quantize.embedding.weight")
    values: dict[str, Any] = {"code_dim": shapes["pre_quantizer_mlp.weight"][0]}
    cost = find_key(published, "vq_commitment_cost")
    if find_key(published, "vq_use_l2_norm") is False:
        raise CheckpointError("codes that are not on the unit sphere (vq_use_l2_norm: false) are not known here")
    if codebook is None:
        return values | {"quantizer": "none"}
    return values | {"codebook_size": codebook[0], "commitment_cost": 0.25 if cost is None else float(cost)}


def wrap_shared(config: Any) -> dict[str, Any]:
    """The published constructor's arguments that both families have."""
    if config.base == "pixels":
        raise ConfigError("it has a grid tokenizer below, and base: pixels has none")
    if config.base == "kl" and (config.kl.scaling_factor, config.kl.pixels) != (0.2325, "unit"):
        raise ConfigError("its KL autoencoder sees pixels in [0, 1], and its scaling_factor is 0.2325")
    codec = config.vqgan if config.base == "vqgan" else config.kl
    sizes: dict[str, Any] = {"ch": codec.base_channels, "mult": list(codec.multipliers)}
    if config.base == "vqgan":
        sizes |= {"res": config.image_size, "zc": codec.code_dim, "n_embed": codec.codebook_size}
    else:
        sizes |= {"resolution": config.image_size, "embed_dim": codec.latent_channels}
    return {
        "base_tokenizer": "vae" if config.base == "kl" else "vqgan",
        "quantize_latent": config.quantizer == "vq",
        **{
            f"{side}_{name}": getattr(getattr(config, side), ours)
            for side in ("encoder", "decoder")
            for name, ours in (("width", "width"), ("num_layers", "depth"), ("num_heads", "num_heads"))
        },
        "vq_codebook_size": config.codebook_size,
        "vq_token_dim": config.code_dim,
        "vq_commitment_cost": config.commitment_cost,
        "vq_use_l2_norm": True,
        "patch_size": config.patch_size,
        "base_config": sizes,
    }


def image_size_of(published: Mapping[str, Any] | None, told: int | None) -> int | None:
    """Pixels a side, where something says so."""
    for key in ("img_size", "res", "resolution"):
        size = find_key(published, key)
        if size:
            return int(size)
    return told


def head_rules(ours: str) -> list[Rule]:
    """Rules of the decoder's parts that both families name alike; ``ours`` is the head's name."""
    return [
        Rule("decoder.ln_pre.*", "decoder.norm_pre.*"),
        Rule("decoder.ln_post.*", "decoder.norm_post.*"),
        Rule("decoder.ffn.*", f"{ours}.*"),
        *block_rules("decoder.transformer", "decoder.transformer"),
    ]


_RULES = [
    Rule("encoder_positional_embedding", "encoder.pos_embed"),
    Rule("latent_tokens", "encoder.latent_tokens"),
    Rule("rec_loss_embeddings", "encoder.conditions"),
    Rule("patch_embed.*", "encoder.patch_embed.*"),
    Rule("encoder_ln_pre.*", "encoder.norm_pre.*"),
    *block_rules("encoder.transformer", "encoder.transformer"),
    Rule("encoder_ln_post_halt.*", "norm_halting.*"),
    Rule("halting_mlp.*", "halting_head.*"),
    Rule("encoder_ln_post.*", "norm_latents.*"),
    Rule("pre_quantizer_mlp.*", "to_latents.*"),
    Rule("quantize.embedding.weight", "quantizer.codebook"),
    Rule("decoder_embed.*", "decoder.latent_embed.*"),
    Rule("decoder_latent_tokens_timestep_embed", "decoder.latent_pos_embed"),
    Rule("decoder_mask_token", "decoder.mask_token"),
    Rule("decoder_positional_embedding", "decoder.pos_embed"),
    *head_rules("decoder.head"),
]


def _key_map(config: KarlConfig) -> KeyMap:
    return KeyMap(_RULES + base_rules(config.base, config.kl))


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> KarlConfig:
    if shapes["rec_loss_embeddings"][0] != len(ERRORS):
        raise CheckpointError(f"KARL has {len(ERRORS)} conditions, got {shapes['rec_loss_embeddings'][0]}")
    return KarlConfig(
        **read_base(shapes, image_size_of(published, image_size)),
        **read_quantizer(shapes, published),
        encoder=read_size(shapes, "encoder", published),
        decoder=read_size(shapes, "decoder", published),
        num_tokens=shapes["latent_tokens"][0],
    )


def _wrap_config(config: KarlConfig) -> dict[str, Any]:
    """The published constructor's arguments.

    Raises:
        ConfigError: an option that the published layout cannot tell.
    """
    if config.kept != "any":
        raise ConfigError("any token may be deleted there (kept: any)")
    return wrap_shared(config)


KARL = Source(
    title="KARL (karl_small_*.pth)",
    family="karl",
    signature=frozenset({"rec_loss_embeddings", "halting_mlp.0.weight", "decoder_latent_tokens_timestep_embed"}),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
    losses="gan_losses.",
)
