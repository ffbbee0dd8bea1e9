"""MaskGIT-VQGAN's published names (``maskgit-vqgan-imagenet-f16-256.bin`` of fun-research/TiTok)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.models.maskgit_vqgan import MaskGitVqganConfig

_MAX_LEVELS = 10


def decoder_rules(published: str, ours: str) -> list[Rule]:
    """Rules of the decoding half under the given prefixes (with their dots)."""
    pairs = [
        ("up.{}.block.{}.nin_shortcut.weight", "up.{}.{}.shortcut.weight"),
        ("up.{}.block.{}.*", "up.{}.{}.*"),
        # Published levels count from full size; the convolution after level i leads to level i - 1.
        *((f"up.{level}.upsample_conv.*", f"upsample.{level - 1}.*") for level in range(1, _MAX_LEVELS)),
        *((f"{name}.*", f"{name}.*") for name in ("conv_in", "mid", "norm_out", "conv_out")),
    ]
    return [Rule(published + left, ours + right) for left, right in pairs]


_ENCODER_RULES = [
    Rule("encoder.down.{}.block.{}.nin_shortcut.weight", "encoder.down.{}.{}.shortcut.weight"),
    Rule("encoder.down.{}.block.{}.*", "encoder.down.{}.{}.*"),
    *(Rule(f"encoder.{name}.*", f"encoder.{name}.*") for name in ("conv_in", "mid", "norm_out", "conv_out")),
]
_KEY_MAP = KeyMap(
    [*decoder_rules("decoder.", "decoder."), *_ENCODER_RULES, Rule("quantize.embedding.weight", "quantizer.codebook")]
)


def decoder_config(shapes: Shapes, prefix: str, codebook: str, image_size: int) -> MaskGitVqganConfig:
    """Sizes of a decoder whose tensors lie under ``prefix``."""
    levels = count(shapes, rf"{prefix}up\.(\d+)\.")
    base = shapes[f"{prefix}conv_out.weight"][1]
    widths = [shapes[f"{prefix}up.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    codebook_size, code_dim = shapes[codebook]
    return MaskGitVqganConfig(
        image_size=image_size,
        base_channels=base,
        multipliers=tuple(width // base for width in widths),
        num_blocks=count(shapes, rf"{prefix}up\.0\.block\.(\d+)\."),
        code_dim=code_dim,
        codebook_size=codebook_size,
    )


def _read_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> MaskGitVqganConfig:
    size = image_size or int(find_key(published, "resolution") or 256)
    return decoder_config(shapes, "decoder.", "quantize.embedding.weight", size)


def _wrap_config(config: MaskGitVqganConfig) -> dict[str, Any]:
    return {
        "channel_mult": list(config.multipliers),
        "num_resolutions": len(config.multipliers),
        "resolution": config.image_size,
        "hidden_channels": config.base_channels,
        "num_res_blocks": config.num_blocks,
        "z_channels": config.code_dim,
        "num_embeddings": config.codebook_size,
    }


MASKGIT_VQGAN = Source(
    title="MaskGIT-VQGAN (maskgit-vqgan-imagenet-f16-256.bin)",
    family="maskgit_vqgan",
    signature=frozenset({"quantize.embedding.weight", "encoder.mid.0.norm1.weight", "decoder.conv_in.weight"}),
    read_config=_read_config,
    key_map=lambda config: _KEY_MAP,
    wrap_config=_wrap_config,
)
