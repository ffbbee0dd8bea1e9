"""The KL autoencoder of latent diffusion with attention at its coarsest level: a 16x16 map for a 256-pixel image.

Paper: latent diffusion, arXiv:2112.10752. Matches ``kl16.ckpt`` of MAR (arXiv:2406.11838), and the autoencoder inside
KARL's and ALIT's checkpoints. ``kl_vae`` is the other shape, without that attention, which diffusers has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.layers.conv import ConvDecoder, ConvEncoder
from vistok.layers.kl_autoencoder import sample_posterior
from vistok.models.latent_map import LatentMapTokenizer


@dataclass(frozen=True)
class LdmKlConfig:
    """Sizes of the autoencoder.

    Attributes:
        image_size: pixels a side; the map is ``image_size / 2 ** (len(multipliers) - 1)``.
        base_channels: channels of the level of full size, a multiple of 32.
        multipliers: channels of each level as multiples of ``base_channels``.
        num_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: C of the latent map.
        attention: whether the encoder's last level attends after each of its blocks.
        scaling_factor: latents are multiplied by it for what is built on them.
        pixels: what the networks see: ``symmetric`` for [-1, 1], as they were published, or ``unit`` for [0, 1].
    """

    image_size: int = 256
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    latent_channels: int = 16
    attention: bool = True
    scaling_factor: float = 0.2325
    pixels: Literal["symmetric", "unit"] = "symmetric"

    def __post_init__(self) -> None:
        for key in ("image_size", "base_channels", "num_blocks", "latent_channels"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ConfigError(f"multipliers are at least 1, one a level, got {self.multipliers}")
        if self.base_channels % 32:
            raise ConfigError(f"base_channels is a multiple of 32 (the norm's groups), got {self.base_channels}")
        if self.image_size % self.downsampling:
            raise ConfigError(f"image_size is a multiple of {self.downsampling}, got {self.image_size}")
        if self.scaling_factor == 0.0:
            raise ConfigError("scaling_factor is not 0")

    @property
    def downsampling(self) -> int:
        """Pixels a side of one position of the map."""
        return 2 ** (len(self.multipliers) - 1)


class LdmKl(LatentMapTokenizer):
    """Images to their latent map, row by row, and back. Tokens are latents without ``scaling_factor``.

    Args:
        config: sizes.
    """

    family = "ldm_kl"
    config_class = LdmKlConfig

    def __init__(self, config: LdmKlConfig) -> None:
        super().__init__(config)
        shared = {"num_mid_blocks": 2, "bias": True, "shortcut": "input", "mid_attention": True}
        sizes = (config.base_channels, config.multipliers)
        channels = config.latent_channels
        self.grid_size = config.image_size // config.downsampling
        self.encoder = ConvEncoder(
            *sizes,
            config.num_blocks,
            2 * channels,
            downsample="conv",
            attention=config.attention,
            out_kernel=3,
            **shared,
        )
        self.decoder = ConvDecoder(*sizes, config.num_blocks + 1, channels, **shared)
        self.to_moments = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.from_latents = nn.Conv2d(channels, channels, 1)

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> mean and log-variance (clamped to [-30, 20]), each [B, C, h, w]."""
        pixels = 2.0 * images - 1.0 if self.config.pixels == "symmetric" else images
        mean, logvar = self.to_moments(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode_map(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W] around [0, 1], not clamped."""
        pixels = self.decoder(self.from_latents(latents))
        return (pixels + 1.0) / 2.0 if self.config.pixels == "symmetric" else pixels

    def forward(self, images: Tensor, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Training outputs: ``reconstruction`` of a posterior sample, and ``kl`` [B, h*w].

        Args:
            images: [B, 3, H, W] in [0, 1].
            noise: [B, C, h, w], of the sample; drawn where not given.
        """
        mean, logvar = self.moments(images)
        noise = torch.randn_like(mean) if noise is None else noise
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=1).flatten(1)
        return {"reconstruction": self.decode_map(sample_posterior(mean, logvar, noise=noise)), "kl": kl}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The posterior's ``noise`` [C, h, w]; see ``Tokenizer.draw``."""
        return {"noise": torch.randn(self.config.latent_channels, self.grid_size, self.grid_size, generator=generator)}
