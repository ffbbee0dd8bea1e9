"""Published names of convolutional codecs in latent diffusion's layout: MAR's KL-16 and MAGE's VQGAN.

``kl16.ckpt`` (arXiv:2406.11838) is a KL autoencoder; ``vqgan_jax_strongaug.ckpt`` (MAGE, arXiv:2211.09117) is MaskGIT's
VQGAN under these names. KARL's and ALIT's checkpoints hold one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.convert.maskgit_vqgan import decoder_config
from vistok.errors import ConfigError
from vistok.models.ldm_kl import LdmKlConfig
from vistok.models.maskgit_vqgan import MaskGitVqganConfig

_LEVELS = range(10)
_ATTENTION = (("norm", "norm"), ("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj"))


def codec_rules(published: str, ours: str, *, levels: int) -> list[Rule]:
    """Rules of a codec under the given prefixes (with their dots), whose encoder has so many ``levels``."""
    pairs: list[tuple[str, str]] = [
        # Attention of the encoder's last level, whose number is part of the published names.
        (f"encoder.down.{levels - 1}.attn.{{}}.{left}.*", f"encoder.attention.{{}}.{right}.*")
        for left, right in _ATTENTION
    ]
    for side, name in (("encoder", "down"), ("decoder", "up")):
        pairs += [(f"{side}.mid.block_{number}.*", f"{side}.mid.{number - 1}.*") for number in (1, 2)]
        pairs += [(f"{side}.mid.attn_1.{left}.*", f"{side}.mid_attention.{right}.*") for left, right in _ATTENTION]
        pairs += [
            (f"{side}.{name}.{{}}.block.{{}}.nin_shortcut.*", f"{side}.{name}.{{}}.{{}}.shortcut.*"),
            (f"{side}.{name}.{{}}.block.{{}}.*", f"{side}.{name}.{{}}.{{}}.*"),
        ]
        pairs += [(f"{side}.{part}.*", f"{side}.{part}.*") for part in ("conv_in", "norm_out", "conv_out")]
    # A level's convolution leads to the next one down, or up; published numbers are those of the level itself.
    pairs += [(f"encoder.down.{level}.downsample.conv.*", f"encoder.downsample.{level}.*") for level in _LEVELS]
    pairs += [(f"decoder.up.{level}.upsample.conv.*", f"decoder.upsample.{level - 1}.*") for level in _LEVELS[1:]]
    pairs += [("quant_conv.*", "to_moments.*"), ("post_quant_conv.*", "from_latents.*")]
    pairs += [("quantize.embedding.weight", "quantizer.codebook")]
    return [Rule(published + left, ours + right) for left, right in pairs]


def kl_config(
    shapes: Shapes, prefix: str, image_size: int, *, pixels: Literal["symmetric", "unit"] = "symmetric"
) -> LdmKlConfig:
    """Sizes of a KL autoencoder whose tensors lie under ``prefix`` (with its dot)."""
    levels = count(shapes, rf"{prefix}encoder\.down\.(\d+)\.")
    base = shapes[f"{prefix}encoder.conv_in.weight"][0]
    widths = [shapes[f"{prefix}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return LdmKlConfig(
        image_size=image_size,
        base_channels=base,
        multipliers=tuple(width // base for width in widths),
        num_blocks=count(shapes, rf"{prefix}encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=shapes[f"{prefix}post_quant_conv.weight"][0],
        attention=f"{prefix}encoder.down.{levels - 1}.attn.0.q.weight" in shapes,
        pixels=pixels,
    )


def _read_kl(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> LdmKlConfig:
    return kl_config(shapes, "", image_size or int(find_key(published, "resolution") or 256))


def _wrap_kl(config: LdmKlConfig) -> dict[str, Any]:
    if (config.scaling_factor, config.pixels) != (LdmKlConfig.scaling_factor, LdmKlConfig.pixels):
        raise ConfigError("scaling_factor and pixels are not part of it")
    return {
        "embed_dim": config.latent_channels,
        "ch": config.base_channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.num_blocks,
        "resolution": config.image_size,
    }


def _read_vqgan(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> MaskGitVqganConfig:
    size = image_size or int(find_key(published, "resolution") or 256)
    return decoder_config(shapes, "decoder.", "quantize.embedding.weight", size)


LDM_KL = Source(
    title="KL autoencoders of latent diffusion (kl16.ckpt of MAR)",
    family="ldm_kl",
    signature=frozenset({"quant_conv.weight", "post_quant_conv.weight", "encoder.mid.attn_1.q.weight"}),
    read_config=_read_kl,
    key_map=lambda config: KeyMap(codec_rules("", "", levels=len(config.multipliers))),
    wrap_config=_wrap_kl,
    losses="loss.",
)
MAGE_VQGAN = Source(
    title="MAGE's VQGAN (vqgan_jax_strongaug.ckpt)",
    family="maskgit_vqgan",
    signature=frozenset(
        {"quantize.embedding.weight", "encoder.mid.block_1.norm1.weight", "decoder.up.0.block.0.norm1.weight"}
    ),
    read_config=_read_vqgan,
    key_map=lambda config: KeyMap(codec_rules("", "", levels=len(config.multipliers))),
    wrap_config=lambda config: {"resolution": config.image_size},
    losses="loss.",
)
