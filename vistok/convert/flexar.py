"""FlexAR's published names, and its configuration: a tree whose ``_target_`` names are read as data, never imported.

Shapes tell widths, depths, biases and which options have tensors; the tree tells the rest. Where it is
silent the defaults of apple/ml-l3m hold, and heads are 64 wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import PublishedConfigError
from vistok.generate.flexar import FlexARConfig, FlexARSampling, TextConfig, default_hidden_width
from vistok.generate.flexar_blocks import Activation, AttentionConfig, NormConfig

_AR, _TEXT = "models.ar_image_model", "models.text_encoder"
_BLOCK = f"{_AR}.trunk.blocks"
_HEAD_WIDTH = 64
_LEVELS = (8, 8, 8, 5, 5, 5)  # of every published FlexTok
# Kind and default eps of a norm by its class.
_NORMS = {
    "LayerNorm": ("layer", 1e-5),
    "LayerNormFP32": ("layer", 1e-5),
    "LPLayerNorm": ("layer", 1e-5),
    "RMSNorm": ("rms", 1e-6),
}
_L3M = "l3m.model.layers"


def _key_map(config: FlexARConfig) -> KeyMap:
    first, reads = ("self_attn", True) if config.text else ("attn", False)
    own = "blocks.{}"
    pairs = {
        f"{first}.q_norm.*": "attn.query_norm.*",
        f"{first}.k_norm.*": "attn.key_norm.*",
        f"{first}.*": "attn.*",
        "cross_attn.Wq.*": "read.query.*",
        "cross_attn.Wk.*": "read.key.*",
        "cross_attn.Wv.*": "read.value.*",
        "cross_attn.q_norm.*": "read.query_norm.*",
        "cross_attn.k_norm.*": "read.key_norm.*",
        "cross_attn.proj.*": "read.proj.*",
        "norm_1.*": "norm1.*",
        f"norm_{3 if reads else 2}.*": "norm2.*",
    }
    if reads:
        pairs["norm_2.*"] = "norm_read.*"
    gated = {"mlp.fc1.*": "mlp.gate.*", "mlp.fc3.*": "mlp.up.*", "mlp.fc2.*": "mlp.down.*"}
    pairs |= gated if config.mlp == "swiglu" else {"mlp.*": "mlp.*"}
    return KeyMap(
        [
            *(Rule(f"{_BLOCK}.{{}}.{left}", f"{own}.{right}") for left, right in pairs.items()),
            Rule(f"{_TEXT}.mlp.*", "text.*"),
            Rule(f"{_AR}.preprocessor.embedding.weight", "token_embed.weight"),
            Rule(f"{_AR}.preprocessor.sos_token_embed", "start_embed"),
            Rule(f"{_AR}.preprocessor.positional_embedding", "pos_embed"),
            Rule(f"{_AR}.preprocessor.cls_embedding.weight", "class_embed.weight"),
            Rule(f"{_AR}.trunk.post_trunk_norm.*", "norm.*"),
            Rule(f"{_AR}.head.norm.*", "head_norm.*"),
            Rule(f"{_AR}.head.linear.*", "head.*"),
        ]
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> FlexARConfig:
    """Our configuration of a published checkpoint.

    Args:
        shapes: of its tensors.
        published: the hub's config.yaml, or nothing.
    Raises:
        PublishedConfigError: parts that vistok does not have.
    """
    del image_size  # a generator does not know it
    published = published or {}
    model = _branch(published, "model")
    modules = _branch(model, "meta_model", "models")
    ar, text = _branch(modules, "ar_image_model"), _branch(modules, "text_encoder")
    preprocessor, trunk, head = (_branch(ar, name) for name in ("preprocessor", "trunk", "head"))
    vocab_size, width = shapes[f"{_AR}.preprocessor.embedding.weight"]
    reads = f"{_BLOCK}.0.cross_attn.Wq.weight" in shapes
    classes = shapes.get(f"{_AR}.preprocessor.cls_embedding.weight", (0,))[0]
    mlp = _mlp(shapes, trunk, reads)
    hidden_width = shapes[f"{_BLOCK}.0.mlp.fc1.weight"][0]
    # GridAR writes the ids of another tokenizer, which its file does not have.
    levels = vocab_size == math.prod(_LEVELS) and not model.get("remove_image_tokenizer")
    sampling, dropout = _sampling(_branch(published, "generation")), preprocessor.get("cond_dropout_prob")
    # Captions are dropped by the data, of which the tree says nothing; and what is guided was without its class now and then.
    if reads or dropout is None or (sampling.guided and not dropout):
        dropout = FlexARConfig.class_dropout
    last_norm = trunk.get("post_trunk_norm", f"{_AR}.trunk.post_trunk_norm.weight" in shapes)
    return FlexARConfig(
        codebook_size=_LEVELS if levels else vocab_size,
        num_tokens=_num_tokens(shapes, preprocessor),
        num_classes=classes,
        text=_text(shapes, text, width) if reads else None,
        width=width,
        depth=count(shapes, rf"{_BLOCK}\.(\d+)\."),
        attention=_attention(shapes, trunk.get("self_attn_target" if reads else "attn_target"), reads=False),
        reading=_attention(shapes, trunk.get("cross_attn_target"), reads=True) if reads else AttentionConfig(),
        norm=_norm(shapes, trunk.get("norm_layer"), f"{_BLOCK}.0.norm_1", default_eps=1e-6),
        last_norm=bool(last_norm),
        mlp=mlp,
        hidden_width=None if hidden_width == default_hidden_width(width, mlp) else hidden_width,
        mlp_bias=f"{_BLOCK}.0.mlp.fc1.bias" in shapes,
        positions=_positions(shapes, preprocessor),
        head_norm=bool(head.get("use_layernorm", f"{_AR}.head.norm.weight" in shapes)),
        head_bias=f"{_AR}.head.linear.bias" in shapes,
        class_dropout=float(dropout),
        sampling=sampling,
    )


def _branch(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A part of the tree, {} where it is not there."""
    for name in names:
        found = tree.get(name)
        tree = found if isinstance(found, Mapping) else {}
    return tree


def _target(tree: Any, known: Any, what: str) -> str:
    """The class that a part of the tree names, without its module; one of ``known``."""
    target = tree.get("_target_") if isinstance(tree, Mapping) else tree
    name = str(target).rpartition(".")[2]
    if name not in known:
        raise PublishedConfigError(f"FlexAR's {what} {target} is not known to vistok; known: {', '.join(known)}")
    return name


def _num_tokens(shapes: Shapes, preprocessor: Mapping[str, Any]) -> int:
    table = shapes.get(f"{_AR}.preprocessor.positional_embedding")
    if table:
        return table[0]
    grid = preprocessor.get("token_grid_size")
    if not grid:
        raise PublishedConfigError("without positions, FlexAR's length is only in its config.yaml: token_grid_size")
    return math.prod(grid)


def _positions(shapes: Shapes, preprocessor: Mapping[str, Any]) -> str:
    if f"{_AR}.preprocessor.positional_embedding" not in shapes:
        return "none"
    # A table of any other kind is in the checkpoint too.
    return "sincos" if preprocessor.get("pos_embed_type") == "sincos1d" else "learned"


def _attention(shapes: Shapes, tree: Any, *, reads: bool) -> AttentionConfig:
    """One kind of attention, of which the tree may have an entry."""
    trunk_reads = f"{_BLOCK}.0.cross_attn.Wq.weight" in shapes
    name = "cross_attn" if reads else "self_attn" if trunk_reads else "attn"
    first = "Wq" if reads else "qkv"
    tree = tree if isinstance(tree, Mapping) else {}
    if tree:
        _target(tree, ("GeneralizedAttentionWithMask",) if reads else ("EfficientAttention",), "attention")
    if not reads and tree.get("is_causal") is False:
        raise PublishedConfigError("FlexAR's attention is not causal (is_causal: false), so it does not generate")
    width = shapes[f"{_BLOCK}.0.{name}.proj.weight"][0]
    has_norm = f"{_BLOCK}.0.{name}.q_norm.weight" in shapes
    head_width = shapes[f"{_BLOCK}.0.{name}.q_norm.weight"][0] if has_norm else _HEAD_WIDTH
    norm = tree.get("qk_norm")
    scale = None if reads else tree.get("qk_scale")
    return AttentionConfig(
        num_heads=int(tree.get("num_heads") or max(1, width // head_width)),
        qkv_bias=f"{_BLOCK}.0.{name}.{first}.bias" in shapes,
        proj_bias=f"{_BLOCK}.0.{name}.proj.bias" in shapes,
        qk_norm=_norm(shapes, norm, f"{_BLOCK}.0.{name}.q_norm", default_eps=1e-6) if norm or has_norm else None,
        scale=None if scale is None else float(scale),
    )


def _norm(shapes: Shapes, tree: Any, name: str, *, default_eps: float) -> NormConfig:
    """A norm: its tensors tell gain and bias; what has a gain only is taken for an rms norm where the tree is silent."""
    gain, bias = f"{name}.weight" in shapes, f"{name}.bias" in shapes
    if not tree:
        return NormConfig("rms" if gain and not bias else "layer", default_eps, gain, bias)
    kind, eps = _NORMS[_target(tree, _NORMS, "norm")]
    given = tree.get("eps") if isinstance(tree, Mapping) else None
    return NormConfig(kind, eps if given is None else float(given), gain, bias)


def _mlp(shapes: Shapes, trunk: Mapping[str, Any], reads: bool) -> str:
    if trunk.get("ffn_target"):
        _target(trunk["ffn_target"], ("MLP", "SwiGLUFFN"), "ffn_target")
    if f"{_BLOCK}.0.mlp.fc3.weight" in shapes:
        return "swiglu"
    # The trunk for captions does not hand its act_layer on: its recorded outputs are those of the exact GELU whatever the
    # configuration says.
    return "gelu" if reads else _activation(trunk.get("act_layer"))


def _activation(tree: Any) -> Activation:
    if not tree:
        return "gelu"
    name = _target(tree, ("GELU", "SiLU", "ReLU"), "act_layer").lower()
    tanh = isinstance(tree, Mapping) and tree.get("approximate") == "tanh"
    return "gelu_tanh" if tanh and name == "gelu" else name


def _text(shapes: Shapes, tree: Mapping[str, Any], width: int) -> TextConfig:
    """What it reads; ``width`` is the transformer's."""
    embedder, mlp = _branch(tree, "t5_embedder"), _branch(tree, "mlp")
    out_width = shapes[f"{_TEXT}.mlp.fc2.weight"][0]
    return TextConfig(
        model=str(embedder.get("hf_hub_path") or TextConfig.model),
        width=shapes[f"{_TEXT}.mlp.fc1.weight"][1],
        out_width=None if out_width == width else out_width,
        length=int(embedder.get("encoder_seqlen_max") or TextConfig.length),
        activation=_activation(mlp["act_layer"]) if mlp.get("act_layer") else TextConfig.activation,
        bias=f"{_TEXT}.mlp.fc1.bias" in shapes,
    )


def _sampling(generation: Mapping[str, Any]) -> FlexARSampling:
    """The tree's ``generation``; there a top_p of 0 and a cfg_factor of nothing are off."""
    factor = generation.get("cfg_factor")
    temperature = float(generation.get("temperature") or 1.0)
    return FlexARSampling(
        temperature=temperature if generation.get("sample", True) else 0.0,
        top_k=int(generation.get("top_k") or 0),
        top_p=float(generation.get("top_p") or 1.0),
        cfg_scale=1.0 if factor is None else float(factor),
    )


def _wrap_config(config: FlexARConfig) -> dict[str, Any]:
    """The published tree, as far as it tells; the shape of the grid is not known to a generator, so it is a column."""
    width = config.width
    models: dict[str, Any] = {}
    if config.text:
        models["text_encoder"] = _wrapped_text(config.text, config)
    models["ar_image_model"] = {
        "_target_": "l3m.model.meta_models.MetaModel",
        "preprocessor": {
            "_target_": "flextok_ar.model.preprocessors.ARImageEmbedPreprocessor",
            "token_grid_size": [config.num_tokens, 1],
            "codebook_size": config.vocab_size,
            "embed_dim": width,
            "pos_embed_type": {"learned": "absolute", "sincos": "sincos1d", "none": None}[config.positions],
            "num_classes": config.num_classes or None,
            "cond_dropout_prob": 0.0 if config.text else config.class_dropout,
            "read_key": "image_token_ids",
            "write_key": ["input_embeddings", "target_token_ids"],
        },
        "trunk": _wrapped_trunk(config),
        "head": {
            "_target_": "l3m.model.heads.classifier.LinearClassifier",
            "in_features": width,
            "out_features": config.vocab_size,
            "use_layernorm": config.head_norm,
            "use_bias": config.head_bias,
            "read_key": "trunk_out",
            "write_key": "logits",
        },
    }
    sampling = config.sampling
    return {
        "model": {
            "meta_model": {"_target_": "l3m.model.meta_models.InSeriesMetaModels", "models": models},
            "remove_image_tokenizer": config.codebook_size != _LEVELS,
        },
        "generation": {
            "model_type": "ar_text_to_image_model" if config.text else "ar_label_to_image_model",
            "sample": not sampling.greedy,
            "temperature": sampling.temperature or 1.0,
            "top_k": sampling.top_k,
            "top_p": 0.0 if sampling.top_p == 1.0 else sampling.top_p,
            "cfg_factor": sampling.cfg_scale if sampling.guided else None,
            "num_keep_tokens": config.num_tokens,
            "num_samples": 1,
        },
    }


def _partial(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "_partial_": True, **arguments}


def _wrapped_text(text: TextConfig, config: FlexARConfig) -> dict[str, Any]:
    return {
        "_target_": "flextok_ar.model.text_encoder.T5EmbedderWithMLP",
        "t5_embedder": {
            "_target_": "flextok_ar.model.text_encoder.T5Embedder",
            "read_key": "text",
            "text_embeddings_write_key": "text_embeddings",
            "text_embeddings_mask_write_key": "text_embeddings_mask",
            "hf_hub_path": text.model,
            "encoder_seqlen_max": text.length,
            "decoder_seqlen": config.num_tokens,
        },
        "mlp": {
            "_target_": "flextok_ar.model.text_encoder.TextToEmbedMLP",
            "text_dim": text.width,
            "embed_dim": text.out_width or config.width,
            "act_layer": _wrapped_activation(text.activation),
            "use_bias": text.bias,
        },
    }


def _wrapped_trunk(config: FlexARConfig) -> dict[str, Any]:
    width = config.width
    own = _wrapped_attention(f"{_L3M}.attention.EfficientAttention", config.attention, width) | {"is_causal": True}
    if config.attention.scale is not None:
        own["qk_scale"] = config.attention.scale
    if config.text:
        reading = _wrapped_attention("flextok_ar.model.attention.GeneralizedAttentionWithMask", config.reading, width)
        head = {
            "_target_": "l3m.model.trunks.transformer_decoder.TransformerDecoder",
            "encoder_output_key": "text_embeddings",
            "self_attn_mask_read_key": "text_embeddings_mask",
            "self_attn_target": own,
            "cross_attn_target": reading | {"encoder_dim": config.text.out_width or width},
        }
    else:
        head = {"_target_": "l3m.model.trunks.transformer.Transformer", "attn_target": own}
    gated = config.mlp == "swiglu"
    # A ratio that gives exactly this width, rounded up to one: any other is only rounded differently.
    ratio = config.mlp_width / width * (1.5 if gated else 1.0)
    return head | {
        "embed_dim": width,
        "num_blocks": config.depth,
        "ffn_target": _partial(f"{_L3M}.ffn.SwiGLUFFN", multiple_of=1) if gated else _partial(f"{_L3M}.ffn.MLP"),
        "act_layer": _wrapped_activation("gelu" if gated else config.mlp),
        "norm_layer": _wrapped_norm(config.norm),
        "mlp_ratio": ratio,
        "use_bias": config.mlp_bias,
        "post_trunk_norm": config.last_norm,
        "read_key": "input_embeddings",
        "write_key": "trunk_out",
    }


def _wrapped_attention(target: str, attention: AttentionConfig, width: int) -> dict[str, Any]:
    tree = _partial(target, dim=width, num_heads=attention.num_heads, qkv_bias=attention.qkv_bias)
    return tree | ({"qk_norm": _wrapped_norm(attention.qk_norm)} if attention.qk_norm else {})


def _wrapped_norm(norm: NormConfig) -> dict[str, Any]:
    if norm.kind == "rms":
        return _partial(f"{_L3M}.normalization.RMSNorm", eps=norm.eps)
    if norm.gain and norm.bias:
        return _partial("torch.nn.LayerNorm", eps=norm.eps)
    options = {"elementwise_gain": norm.gain, "elementwise_bias": norm.bias}
    return _partial(f"{_L3M}.normalization.LPLayerNorm", eps=norm.eps, **options)


def _wrapped_activation(activation: Activation) -> dict[str, Any]:
    name = {"gelu": "GELU", "gelu_tanh": "GELU", "silu": "SiLU", "relu": "ReLU"}[activation]
    return _partial(f"torch.nn.{name}", **({"approximate": "tanh"} if activation == "gelu_tanh" else {}))


FLEXAR = Source(
    title="FlexTok's autoregressive models (EPFL-VILAB/FlexAR-*, GridAR-3B-T2I)",
    family="flexar",
    signature=frozenset({f"{_AR}.preprocessor.embedding.weight", f"{_AR}.head.linear.weight"}),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
    losses=(f"{_TEXT}.t5_embedder.", "models.image_tokenizer."),
)
