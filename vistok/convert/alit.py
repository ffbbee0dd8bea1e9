"""ALIT's published names (the ``ema`` entry of its .pth files)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.karl import (
    base_rules,
    block_rules,
    head_rules,
    image_size_of,
    read_base,
    read_quantizer,
    read_size,
    wrap_shared,
)
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source
from vistok.models.alit import AlitConfig

_RULES = [
    Rule("encoder_positional_embedding", "encoder.pos_embed"),
    Rule("encoder_class_embedding", "encoder.cls_token"),
    Rule("encoder_mask_token", "encoder.mask_token"),
    Rule("latent_tokens", "encoder.latent_tokens"),
    Rule("latent_token_positional_embedding", "encoder.latent_pos_embed"),
    Rule("timestep_embedding", "encoder.rollout_embed"),
    Rule("patch_embed.*", "encoder.patch_embed.*"),
    Rule("encoder_ln_pre.*", "encoder.norm_pre.*"),
    Rule("encoder_ln_recursive.*", "encoder.norm_next.*"),
    *block_rules("encoder.transformer", "encoder.transformer"),
    Rule("encoder_ln_post.*", "norm_latents.*"),
    Rule("pre_quantizer_mlp.*", "to_latents.*"),
    Rule("quantize.embedding.weight", "quantizer.codebook"),
    Rule("decoder.decoder_embed.*", "decoder.latent_embed.*"),
    Rule("decoder.latent_token_positional_embedding", "decoder.latent_pos_embed", "row"),
    Rule("decoder_positional_embedding", "decoder.pos_embed", "row"),
    Rule("decoder_class_embedding", "decoder.cls_token", "row"),
    Rule("decoder_mask_token", "decoder.mask_token"),
    *head_rules("head"),
]
_THRESHOLDS = {"vqgan": 0.55, "kl": 0.025}  # for the KL base a distance, which nothing comes of


def _key_map(config: AlitConfig) -> KeyMap:
    return KeyMap(_RULES + base_rules(config.base, config.kl))


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> AlitConfig:
    base = read_base(shapes, image_size_of(published, image_size))
    rollouts, group, _ = shapes["timestep_embedding"]
    threshold = find_key(published, "dynamic_halting_threshold")
    if threshold is not None and base["base"] == "vqgan":
        base["mask_threshold"] = float(threshold)
    masking = find_key(published, "dynamic_halting")
    return AlitConfig(
        **base,
        **read_quantizer(shapes, published),
        encoder=read_size(shapes, "encoder", published),
        decoder=read_size(shapes, "decoder", published),
        tokens_per_rollout=group,
        num_rollouts=rollouts,
        max_tokens=shapes["decoder.latent_token_positional_embedding"][0],
        masking=True if masking is None else bool(masking),
    )


def _wrap_config(config: AlitConfig) -> dict[str, Any]:
    return wrap_shared(config) | {
        "img_size": config.image_size,
        "num_init_latent_tokens": config.tokens_per_rollout,
        "max_rollout_iters": config.num_rollouts,
        "dynamic_halting": config.masking,
        "dynamic_halting_threshold": config.mask_threshold if config.base == "vqgan" else _THRESHOLDS["kl"],
    }


ALIT = Source(
    title="ALIT (alit_*.pth)",
    family="alit",
    signature=frozenset({"timestep_embedding", "encoder_class_embedding", "encoder_ln_recursive.weight"}),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
    losses="gan_losses.",
)
