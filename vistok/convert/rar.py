"""Names and configurations of RAR (rar_{b,l,xl,xxl}.bin of yucornetto/RAR, which come without a configuration)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import ConfigError
from vistok.generate.rar import RarConfig
from vistok.generate.sampling import SamplingConfig

_SLOTS_AHEAD = 100  # the table of slots has this many rows more than there are tokens


def _key_map(config: RarConfig) -> KeyMap:
    pairs = {
        "norm1.*": "norm1.*",
        "attn.qkv.*": "qkv.*",
        "attn.q_norm.*": "query_norm.*",
        "attn.k_norm.*": "key_norm.*",
        "attn.proj.*": "proj.*",
        "norm2.*": "norm2.*",
        "mlp.*": "mlp.*",
        "adaLN_modulation.1.*": "modulation.*",
    }
    return KeyMap(
        [
            *(Rule(f"blocks.{{}}.{left}", f"blocks.{{}}.{right}") for left, right in pairs.items()),
            Rule("cls_token", "start_embed"),
            Rule("pos_embed", "pos_embed"),
            Rule("target_aware_pos_embed", "target_embed"),
            Rule("timesteps_embeddings", "slot_embed"),
            Rule("embeddings.weight", "embed.weight"),
            Rule("adaln_before_head.adaLN_modulation.1.*", "modulation.*"),
            Rule("lm_head.*", "head.*"),
        ]
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> RarConfig:
    """Our configuration of a published checkpoint; ``published`` may have the official settings in any nesting."""
    del image_size  # a generator does not know it
    vocab_size, width = shapes["lm_head.weight"]
    head = shapes["blocks.0.attn.q_norm.weight"][0]
    tokens = find_key(published, "image_seq_len") or shapes["timesteps_embeddings"][1] - _SLOTS_AHEAD

    def setting(key: str, default: float) -> float:
        found = find_key(published, key)
        return default if found is None else float(found)

    dropout, total = setting("dropout", RarConfig.dropout), setting("max_train_steps", 250_000)
    start, end = setting("randomness_anneal_start", 0.5 * total), setting("randomness_anneal_end", 0.75 * total)
    scale = setting("guidance_scale", 1.0)
    return RarConfig(
        codebook_size=vocab_size,
        num_tokens=int(tokens),
        num_classes=shapes["embeddings.weight"][0] - vocab_size - 2,
        width=width,
        depth=count(shapes, r"blocks\.(\d+)\."),
        num_heads=width // head,
        hidden_width=shapes["blocks.0.mlp.fc1.weight"][0],
        spare_positions=shapes["pos_embed"][1] - int(tokens) - 2,
        spare_slots=shapes["timesteps_embeddings"][1] - int(tokens) - 2,
        dropout=dropout,
        class_dropout=setting("class_label_dropout", RarConfig.class_dropout),
        anneal_start=min(1.0, start / total),
        anneal_end=min(1.0, end / total),
        sampling=SamplingConfig(
            temperature=setting("randomize_temperature", 1.0),
            cfg_scale=scale or 1.0,  # 0 is their way to say that there is none
            cfg_schedule="power_cosine" if scale not in (0.0, 1.0) else "constant",
            cfg_power=setting("guidance_scale_pow", 1.0),
        ),
    )


def _wrap_config(config: RarConfig) -> dict[str, Any]:
    if isinstance(config.codebook_size, tuple):
        raise ConfigError(f"codebook_size is one number there, not {config.codebook_size}")
    sampling, total = config.sampling, 250_000
    if sampling.guided and (sampling.cfg_schedule != "power_cosine" or sampling.cfg_floor != 1.0):
        raise ConfigError(f"guidance follows a power cosine from 1 there, not {sampling.cfg_schedule}")
    return {
        "model": {
            "vq_model": {"codebook_size": config.vocab_size, "num_latent_tokens": config.num_tokens},
            "generator": {
                "hidden_size": config.width,
                "num_hidden_layers": config.depth,
                "num_attention_heads": config.num_heads,
                "intermediate_size": config.hidden_width,
                "dropout": config.dropout,
                "attn_drop": config.dropout,
                "class_label_dropout": config.class_dropout,
                "image_seq_len": config.num_tokens,
                "condition_num_classes": config.num_classes,
                "randomize_temperature": sampling.temperature,
                "guidance_scale": sampling.cfg_scale if sampling.guided else 0.0,
                "guidance_scale_pow": sampling.cfg_power,
                "randomness_anneal_start": config.anneal_start * total,
                "randomness_anneal_end": config.anneal_end * total,
            },
        },
        "training": {"max_train_steps": total},
    }


RAR = Source(
    title="RAR (rar_*.bin of yucornetto/RAR)",
    family="rar",
    signature=frozenset(
        {"target_aware_pos_embed", "timesteps_embeddings", "adaln_before_head.adaLN_modulation.1.weight"}
    ),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
)
