"""MaskGen's published names and configurations, of both kinds.

The layout tells all sizes but the heads; these, the sampling defaults and the scale of latents are read from
the published configuration where there is one, and else are what the published models have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import ConfigError
from vistok.generate.maskgen import MaskGenConfig, MaskGenSampling

_NUM_HEADS = 16
_DIFFUSION_STEPS = 100


def head_rules(published: str, ours: str) -> list[Rule]:
    """The rules of a diffusion head, which MAR's has too."""
    pairs = [
        ("input_proj.*", "input_proj.*"),
        ("cond_embed.*", "condition_proj.*"),
        ("time_embed.mlp.0.*", "time_embed.fc1.*"),
        ("time_embed.mlp.2.*", "time_embed.fc2.*"),
        ("res_blocks.{}.in_ln.*", "blocks.{}.norm.*"),
        ("res_blocks.{}.mlp.0.*", "blocks.{}.fc1.*"),
        ("res_blocks.{}.mlp.2.*", "blocks.{}.fc2.*"),
        ("res_blocks.{}.adaLN_modulation.1.*", "blocks.{}.modulation.*"),
        ("final_layer.adaLN_modulation.1.*", "modulation.*"),
        ("final_layer.linear.*", "out.*"),
    ]
    return [Rule(f"{published}{left}", f"{ours}{right}") for left, right in pairs]


HEAD_KEYS = KeyMap(head_rules("net.", ""))


def _block_rules(published: str, ours: str, depth: int) -> list[Rule]:
    """The joint blocks; the last one's modulation of the text is that of a norm."""
    pairs = [
        ("norm1.linear.*", "modulation.*"),
        ("attn.to_q.*", "query.*"),
        ("attn.to_k.*", "key.*"),
        ("attn.to_v.*", "value.*"),
        ("attn.to_out.0.*", "proj.*"),
        ("attn.add_q_proj.*", "text_query.*"),
        ("attn.add_k_proj.*", "text_key.*"),
        ("attn.add_v_proj.*", "text_value.*"),
        ("attn.to_add_out.*", "text_proj.*"),
        ("ff.net.0.proj.*", "mlp.fc1.*"),
        ("ff.net.2.*", "mlp.fc2.*"),
        ("ff_context.net.0.proj.*", "text_mlp.fc1.*"),
        ("ff_context.net.2.*", "text_mlp.fc2.*"),
    ]
    last = depth - 1
    return [
        Rule(f"{published}.{last}.norm1_context.linear.*", f"{ours}.{last}.text_norm.modulation.*"),
        Rule(f"{published}.{{}}.norm1_context.linear.*", f"{ours}.{{}}.text_modulation.*"),
        *(Rule(f"{published}.{{}}.{left}", f"{ours}.{{}}.{right}") for left, right in pairs),
    ]


def _key_map(config: MaskGenConfig) -> KeyMap:
    if config.kind == "vq":
        return KeyMap(
            [
                *_block_rules("blocks", "transformer.blocks", config.depth),
                Rule("norm.linear.*", "transformer.norm.modulation.*"),
                Rule("text_embed_proj.*", "text_proj.*"),
                Rule("cond_pooled_proj.*", "pooled_proj.*"),
                Rule("pos_embed", "side.pos_embed"),
                Rule("embeddings.weight", "side.embed.weight"),
                Rule("lm_head.weight", "side.embed.weight"),  # the same table, which some files hold twice
            ]
        )
    return KeyMap(
        [
            *_block_rules("decoder_blocks", "transformer.blocks", config.depth),
            Rule("decoder_norm.linear.*", "transformer.norm.modulation.*"),
            Rule("text_emb.*", "text_proj.*"),
            Rule("text_pooled_emb.*", "pooled_proj.*"),
            Rule("z_proj.*", "side.proj.*"),
            Rule("z_proj_ln.*", "side.norm.*"),
            Rule("mask_token", "side.mask_token"),
            Rule("decoder_pos_embed_learned", "side.pos_embed"),
            Rule("diffusion_pos_embed_learned", "side.head_pos_embed"),
            *head_rules("diffloss.net.", "side.head."),
        ]
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> MaskGenConfig:
    """Our configuration of a published checkpoint; ``published`` may have the official keys in any nesting."""
    del image_size  # a generator does not know it
    kind = "kl" if "z_proj.weight" in shapes else "vq"
    text, pooled, blocks, table = (
        ("text_embed_proj.weight", "cond_pooled_proj.weight", r"blocks\.(\d+)\.", "pos_embed")
        if kind == "vq"
        else ("text_emb.weight", "text_pooled_emb.weight", r"decoder_blocks\.(\d+)\.", "decoder_pos_embed_learned")
    )
    width, text_dim = shapes[text]
    own: dict[str, Any]
    if kind == "vq":
        rows = shapes["embeddings.weight" if "embeddings.weight" in shapes else "lm_head.weight"][0]
        classes = find_key(published, "condition_num_classes")
        size = find_key(published, "codebook_size")
        # Codes, the mask token, the classes and their absence: published models have 1000.
        spare = (1000 if classes is None else int(classes)) + 1
        own = {"codebook_size": rows - 1 - spare if size is None else int(size)}
        own["spare_rows"] = rows - 1 - own["codebook_size"]
    else:
        own = {
            "codebook_size": None,
            "code_dim": shapes["z_proj.weight"][1],
            "latent_scale": float(find_key(published, "scale_factor") or MaskGenConfig.latent_scale),
            "head_width": shapes["diffloss.net.input_proj.weight"][0],
            "head_depth": count(shapes, r"diffloss\.net\.res_blocks\.(\d+)\."),
        }
    score, dropout = find_key(published, "sample_aesthetic_score"), find_key(published, "text_drop_prob")
    return MaskGenConfig(
        kind=kind,
        num_tokens=shapes[table][1],
        width=width,
        depth=count(shapes, blocks),
        num_heads=int(find_key(published, "decoder_num_heads") or _NUM_HEADS),
        text_dim=text_dim,
        micro_dim=shapes[pooled][1] - text_dim,
        aesthetic_score=MaskGenConfig.aesthetic_score if score is None else float(score),
        text_dropout=MaskGenConfig.text_dropout if dropout is None else float(dropout),
        sampling=_read_sampling(kind, published),
        **own,
    )


def published_sampling(
    kind: str, scale: float, schedule: str, steps: int, temperature: float, *, diffusion_steps: int = _DIFFUSION_STEPS
) -> MaskGenSampling:
    """The sampling that published options mean.

    Ids are guided by c + w * (c - u), which is scale 1 + w of ``SamplingConfig``; their ``temperature`` is the
    Gumbel noise's.

    Args:
        kind: ``vq`` or ``kl``.
        scale, schedule: of guidance. For ids, w goes from 1 to ``scale`` by ``linear``, ``cosine`` and
            ``flippedcosine``, and is ``scale`` for ``none``; for latents ``linear`` or ``constant``.
        steps, temperature: of generation.
        diffusion_steps: of the head.
    """
    if kind == "kl":
        return MaskGenSampling(
            steps=steps,
            cfg_scale=scale,
            cfg_schedule="constant" if schedule == "constant" else "linear",
            temperature=temperature,
            diffusion_steps=diffusion_steps,
        )
    names = {"cosine": "power_cosine", "linear": "linear", "none": "constant", "flippedcosine": "flipped_cosine"}
    return MaskGenSampling(
        steps=steps,
        cfg_scale=1.0 + scale,
        cfg_schedule=names[schedule],
        cfg_floor=2.0,
        randomize_temperature=temperature,
        anneal=True,
    )


def _read_sampling(kind: str, published: Mapping[str, Any] | None) -> MaskGenSampling:
    defaults = (12.0, "cosine", 16, 2.0) if kind == "vq" else (3.0, "linear", 32, 1.0)
    keys = ("cfg", "cfg_schedule", "num_iter", "temperature")
    scale, schedule, steps, temperature = (
        default if (value := find_key(published, key)) is None else value
        for key, default in zip(keys, defaults, strict=True)
    )
    diffusion_steps = int(find_key(published, "num_sampling_steps") or _DIFFUSION_STEPS)
    schedule = "cosine" if kind == "vq" else schedule  # ids' schedule is no part of the published configuration
    return published_sampling(
        kind, float(scale), schedule, int(steps), float(temperature), diffusion_steps=diffusion_steps
    )


def _wrap_config(config: MaskGenConfig) -> dict[str, Any]:
    sampling = config.sampling
    if isinstance(config.codebook_size, tuple):
        raise ConfigError(f"codebook_size is one number there, not {config.codebook_size}")
    generator: dict[str, Any] = {
        "decoder_embed_dim": config.width,
        "decoder_depth": config.depth,
        "decoder_num_heads": config.num_heads,
        "micro_condition": config.micro_dim > 0,
        "micro_condition_embed_dim": config.micro_dim,
        "text_drop_prob": config.text_dropout,
        "num_iter": sampling.steps,
        "sample_aesthetic_score": config.aesthetic_score,
    }
    tokenizer: dict[str, Any] = {"num_latent_tokens": config.num_tokens, "text_embed_dim": config.text_dim}
    if config.kind == "vq":
        tokenizer |= {"quantize_mode": "vq", "codebook_size": config.codebook_size}
        generator |= {
            "condition_num_classes": config.spare_rows - 1,
            "cfg": sampling.cfg_scale - 1.0,
            "temperature": sampling.randomize_temperature,
        }
        return {"model": {"vq_model": tokenizer, "maskgen": generator}}
    tokenizer |= {"quantize_mode": "vae", "token_size": config.code_dim, "scale_factor": config.latent_scale}
    schedule = "constant" if sampling.cfg_schedule == "constant" else "linear"
    generator |= {"cfg": sampling.cfg_scale, "cfg_schedule": schedule, "temperature": sampling.temperature}
    losses = {
        "diffloss_d": config.head_depth,
        "diffloss_w": config.head_width,
        "num_sampling_steps": str(sampling.diffusion_steps),
    }
    return {"model": {"vq_model": tokenizer, "maskgen": generator}, "losses": losses}


def _source(title: str, *signature: str) -> Source:
    return Source(
        title=title,
        family="maskgen",
        signature=frozenset(signature),
        read_config=_read_config,
        key_map=_key_map,
        wrap_config=_wrap_config,
    )


MASKGEN_VQ = _source(
    "MaskGen VQ (maskgen_vq_*.bin of fun-research/TA-TiTok)",
    "text_embed_proj.weight",
    "cond_pooled_proj.weight",
    "blocks.0.attn.add_k_proj.weight",
)
MASKGEN_KL = _source(
    "MaskGen KL (maskgen_kl_*.bin of fun-research/TA-TiTok)",
    "text_emb.weight",
    "z_proj.weight",
    "diffloss.net.input_proj.weight",
)
