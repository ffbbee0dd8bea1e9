"""Names and configurations of the MaskGIT generators of TiTok and One-D-Piece, of both networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import ConfigError
from vistok.generate.masked import MaskedSamplingConfig
from vistok.generate.maskgit import MaskGitConfig

_NUM_HEADS = 16
_POWER = 3.0


def _key_map(config: MaskGitConfig) -> KeyMap:
    if config.network == "bert":
        pairs = {
            "attention.self.query.*": "query.*",
            "attention.self.key.*": "key.*",
            "attention.self.value.*": "value.*",
            "attention.output.dense.*": "proj.*",
            "attention.output.LayerNorm.*": "norm1.*",
            "intermediate.dense.*": "mlp.fc1.*",
            "output.dense.*": "mlp.fc2.*",
            "output.LayerNorm.*": "norm2.*",
        }
        blocks = [
            Rule(f"model.encoder.layer.{{}}.{left}", f"transformer.blocks.{{}}.{right}")
            for left, right in pairs.items()
        ]
        return KeyMap(
            [
                *blocks,
                Rule("model.embeddings.word_embeddings.weight", "embed.weight"),
                Rule("model.embeddings.position_embeddings.weight", "pos_embed", "row"),
                Rule("model.embeddings.token_type_embeddings.weight", "type_embed"),
                Rule("model.embeddings.LayerNorm.*", "transformer.norm.*"),
                Rule("model.lm_head.*", "head.*"),
            ]
        )
    return KeyMap(
        [
            Rule("out_blocks.{}.skip_linear.*", "transformer.skips.{}.*"),
            Rule("in_blocks.*", "transformer.in_blocks.*"),
            Rule("mid_block.*", "transformer.mid_block.*"),
            Rule("out_blocks.*", "transformer.out_blocks.*"),
            Rule("norm.*", "transformer.norm.*"),
            Rule("embeddings.weight", "embed.weight"),
            Rule("pos_embed", "pos_embed"),
            Rule("lm_head.*", "head.*"),
        ]
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> MaskGitConfig:
    """Our configuration of a published checkpoint; ``published`` may have the official settings in any nesting."""
    del image_size  # a generator does not know it
    bert = "model.lm_head.weight" in shapes
    vocab_size, width = shapes["model.lm_head.weight" if bert else "lm_head.weight"]
    if bert:
        network = "bert"
        depth = count(shapes, r"model\.encoder\.layer\.(\d+)\.")
        hidden_width = shapes["model.encoder.layer.0.intermediate.dense.weight"][0]
        positions = shapes["model.embeddings.position_embeddings.weight"][0]
        rows = shapes["model.embeddings.word_embeddings.weight"][0]
    else:
        network = "uvit"
        depth = 2 * count(shapes, r"in_blocks\.(\d+)\.")
        hidden_width = shapes["mid_block.mlp.fc1.weight"][0]
        positions, rows = shapes["pos_embed"][1], shapes["embeddings.weight"][0]

    def setting(key: str, default: float) -> float:
        found = find_key(published, key)
        return default if found is None else float(found)

    return MaskGitConfig(
        network=network,
        codebook_size=vocab_size,
        num_tokens=positions - 1,
        num_classes=rows - vocab_size - 2,
        width=width,
        depth=depth,
        num_heads=int(setting("num_attention_heads", _NUM_HEADS)),
        hidden_width=hidden_width,
        dropout=setting("dropout", MaskGitConfig.dropout),
        class_dropout=setting("class_label_dropout", MaskGitConfig.class_dropout),
        label_smoothing=setting("label_smoothing", MaskGitConfig.label_smoothing),
        unmasked_weight=setting("loss_weight_unmasked_token", MaskGitConfig.unmasked_weight),
        sampling=published_sampling(
            setting("guidance_scale", 0.0),
            find_key(published, "guidance_decay") or "constant",
            steps=int(setting("num_steps", MaskedSamplingConfig.steps)),
            temperature=setting("randomize_temperature", MaskedSamplingConfig.randomize_temperature),
            power=setting("guidance_scale_pow", _POWER),
        ),
    )


def published_sampling(
    scale: float, decay: str, *, steps: int, temperature: float, power: float = _POWER, anneal: bool = False
) -> MaskedSamplingConfig:
    """The sampling that published options mean.

    ``constant`` and ``linear`` guide by c + w * (c - u), which is scale 1 + w of ``SamplingConfig``, with w = scale, and w
    rising to it from 0; ``power-cosine`` by u + w * (c - u), w rising from 1. A scale of 0 is no guidance.

    Args:
        scale, decay, power: of guidance.
        steps: of generation.
        temperature: of the Gumbel noise.
        anneal: as there.
    """
    schedules = {"constant": "constant", "linear": "linear", "power-cosine": "power_cosine"}
    if decay not in schedules:
        raise ConfigError(f"guidance_decay is one of {', '.join(schedules)}; got {decay}")
    guided = scale not in ((0.0, 1.0) if decay == "power-cosine" else (0.0,))
    return MaskedSamplingConfig(
        steps=steps,
        randomize_temperature=temperature,
        anneal=anneal,
        cfg_scale=(scale if decay == "power-cosine" else 1.0 + scale) if guided else 1.0,
        cfg_schedule=schedules[decay] if guided else "constant",
        cfg_power=power if decay == "power-cosine" and guided else 1.0,
    )


def _wrap_config(config: MaskGitConfig) -> dict[str, Any]:
    if isinstance(config.codebook_size, tuple):
        raise ConfigError(f"codebook_size is one number there, not {config.codebook_size}")
    sampling = config.sampling
    decays = {"constant": "constant", "linear": "linear", "power_cosine": "power-cosine"}
    if sampling.cfg_schedule not in decays or (sampling.guided and sampling.cfg_floor != 1.0):
        raise ConfigError(f"guidance is one of {', '.join(decays)} from 1 on there, not {sampling.cfg_schedule}")
    decay = decays[sampling.cfg_schedule]
    scale = sampling.cfg_scale if decay == "power-cosine" else sampling.cfg_scale - 1.0
    generator = {
        "model_type": "ViT" if config.network == "bert" else "UViT",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_width,
        "dropout": config.dropout,
        "attn_drop": config.dropout,
        "num_steps": sampling.steps,
        "class_label_dropout": config.class_dropout,
        "image_seq_len": config.num_tokens,
        "condition_num_classes": config.num_classes,
        "randomize_temperature": sampling.randomize_temperature,
        "guidance_scale": scale,
        "guidance_decay": decay,
    }
    if decay == "power-cosine":
        generator["guidance_scale_pow"] = sampling.cfg_power
    return {
        "model": {
            "vq_model": {"codebook_size": config.vocab_size, "num_latent_tokens": config.num_tokens},
            "generator": generator,
        },
        "losses": {
            "label_smoothing": config.label_smoothing,
            "loss_weight_unmasked_token": config.unmasked_weight,
        },
    }


def _source(title: str, *signature: str) -> Source:
    return Source(
        title=title,
        family="maskgit",
        signature=frozenset(signature),
        read_config=_read_config,
        key_map=_key_map,
        wrap_config=_wrap_config,
    )


MASKGIT_BERT = _source(
    "MaskGIT of TiTok, ImageBert (generator_titok_{l32,b64}.bin of fun-research/TiTok)",
    "model.embeddings.token_type_embeddings.weight",
    "model.lm_head.weight",
)
MASKGIT_UVIT = _source(
    "MaskGIT of TiTok, UViT (generator_titok_s128.bin of fun-research/TiTok)",
    "mid_block.attn.qkv.weight",
    "embeddings.weight",
    "lm_head.weight",
)
