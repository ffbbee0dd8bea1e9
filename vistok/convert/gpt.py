"""Names and configurations of LlamaGen's decoder, which GigaTok's generators are.

The layout tells all sizes but the heads (64 channels each in every published size) and, on a grid, the
number of tokens; these are read from a configuration where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.errors import ConfigError, PublishedConfigError
from vistok.generate.gpt import GptConfig, default_hidden_width

_HEAD_WIDTH = 64
_GRID_TOKENS = 256
_SEQUENCE, _GRID = "gpt_1d.Transformer", "gpt.Transformer (2D RoPE)"


def _key_map(config: GptConfig) -> KeyMap:
    own = "blocks.{}"
    pairs = {
        "attention.wqkv.weight": "qkv.weight",
        "attention.wo.weight": "proj.weight",
        "attention.q_norm.*": "query_norm.*",
        "attention.k_norm.*": "key_norm.*",
        "feed_forward.w1.weight": "mlp.gate.weight",
        "feed_forward.w3.weight": "mlp.up.weight",
        "feed_forward.w2.weight": "mlp.down.weight",
        "attention_norm.weight": "norm1.weight",
        "ffn_norm.weight": "norm2.weight",
        "adaLN_modulation.1.*": "modulation.*",
    }
    return KeyMap(
        [
            *(Rule(f"layers.{{}}.{left}", f"{own}.{right}") for left, right in pairs.items()),
            Rule("cls_embedding.embedding_table.weight", "class_embed.weight"),
            Rule("tok_embeddings.weight", "token_embed.weight"),
            Rule("positional_embedding", "pos_embed"),
            Rule("final_adaLN.1.*", "modulation.*"),
            Rule("norm.weight", "norm.weight"),
            Rule("output.weight", "head.weight"),
        ]
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> GptConfig:
    """Our configuration of a published checkpoint; ``published`` may have the official arguments in any nesting."""
    del image_size  # a generator does not know it
    vocab_size, width = shapes["tok_embeddings.weight"]
    hidden_width = shapes["layers.0.feed_forward.w1.weight"][0]
    table = shapes.get("positional_embedding")
    head = shapes.get("layers.0.attention.q_norm.weight")
    heads = find_key(published, "n_head") or width // (head[0] if head else _HEAD_WIDTH)
    if find_key(published, "n_kv_head") not in (None, heads):
        raise PublishedConfigError("LlamaGen's shared keys and values (n_kv_head) are not known to vistok")
    if find_key(published, "token_dropout_p") is not None:
        dropout = float(find_key(published, "token_dropout_p"))
    else:
        dropout = GptConfig.dropout
    class_dropout = find_key(published, "class_dropout_prob")
    return GptConfig(
        codebook_size=vocab_size,
        num_tokens=table[0] - 1 if table else int(find_key(published, "block_size") or _GRID_TOKENS),
        num_classes=shapes["cls_embedding.embedding_table.weight"][0] - 1,
        width=width,
        depth=count(shapes, r"layers\.(\d+)\."),
        num_heads=int(heads),
        hidden_width=None if hidden_width == default_hidden_width(width) else hidden_width,
        positions="learned" if table else "rotary_2d",
        modulated="final_adaLN.1.weight" in shapes,
        qk_norm=head is not None,
        dropout=dropout,
        class_dropout=GptConfig.class_dropout if class_dropout is None else float(class_dropout),
    )


def _wrap_config(config: GptConfig) -> dict[str, Any]:
    if isinstance(config.codebook_size, tuple):
        raise ConfigError(f"codebook_size is one number there, not {config.codebook_size}")
    return {
        "class": _SEQUENCE if config.positions == "learned" else _GRID,
        "dim": config.width,
        "n_layer": config.depth,
        "n_head": config.num_heads,
        "vocab_size": config.vocab_size,
        "num_classes": config.num_classes,
        "block_size": config.num_tokens,
        "use_adaLN": config.modulated,
        "use_qk_norm": config.qk_norm,
        "token_dropout_p": config.dropout,
        "class_dropout_prob": config.class_dropout,
    }


GPT = Source(
    title="GigaTok's and LlamaGen's GPT (GPT_*256_*.pt of YuuTennYi/GigaTok)",
    family="gpt",
    signature=frozenset(
        {
            "cls_embedding.embedding_table.weight",
            "tok_embeddings.weight",
            "layers.0.attention.wqkv.weight",
            "output.weight",
        }
    ),
    read_config=_read_config,
    key_map=_key_map,
    wrap_config=_wrap_config,
)
