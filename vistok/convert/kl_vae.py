"""The KL autoencoders of diffusers, as those published with FlexTok are stored: names and configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert import find_key
from vistok.convert.key_map import KeyMap, Rule, Shapes, Source, count
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.models.kl_vae import KlVaeConfig


def autoencoder_config(shapes: Shapes, prefix: str, published: Mapping[str, Any] | None = None) -> KlAutoencoderConfig:
    """Sizes of a KL autoencoder whose tensors lie under ``prefix``; what shapes cannot tell from its configuration."""
    levels = count(shapes, rf"{prefix}encoder\.down_blocks\.(\d+)\.")
    block_channels = tuple(
        shapes[f"{prefix}encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
    )
    default = KlAutoencoderConfig()
    published = published or {}
    scaling_factor, groups = find_key(published, "scaling_factor"), find_key(published, "norm_num_groups")
    return KlAutoencoderConfig(
        latent_channels=shapes[f"{prefix}post_quant_conv.weight"][1],
        block_channels=block_channels,
        layers_per_block=count(shapes, rf"{prefix}encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        norm_groups=default.norm_groups if groups is None else int(groups),
        scaling_factor=default.scaling_factor if scaling_factor is None else float(scaling_factor),
    )


def _read_vae_config(
    shapes: Shapes, published: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> KlVaeConfig:
    return KlVaeConfig(image_size=image_size or 256, network=autoencoder_config(shapes, "", published))


def _wrap_vae_config(config: KlVaeConfig) -> dict[str, Any]:
    levels = len(config.network.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.network.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": config.network.latent_channels,
        "layers_per_block": config.network.layers_per_block,
        "norm_num_groups": config.network.norm_groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": config.network.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


KL_VAE = Source(
    title="a KL autoencoder of diffusers (EPFL-VILAB/flextok_vae_*)",
    family="kl_vae",
    signature=frozenset(
        {"quant_conv.weight", "post_quant_conv.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"}
    ),
    read_config=_read_vae_config,
    key_map=lambda config: KeyMap([Rule("*", "vae.net.*")]),
    wrap_config=_wrap_vae_config,
)
