"""A KL autoencoder by itself, as a tokenizer of continuous tokens: one for each position of its latent map.

Matches ``EPFL-VILAB/flextok_vae_c4``, ``_c8`` and ``_c16``, in which FlexTok works, and other
autoencoders of that shape. Paper: latent diffusion, arXiv:2112.10752.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vistok.errors import ConfigError
from vistok.layers.kl_autoencoder import KlAutoencoder, KlAutoencoderConfig
from vistok.models.latent_map import LatentMapTokenizer


@dataclass(frozen=True)
class KlVaeConfig:
    """A KL autoencoder and the images it is used for.

    Attributes:
        image_size: pixels a side.
        network: sizes of the autoencoder.
    """

    image_size: int = 256
    network: KlAutoencoderConfig = KlAutoencoderConfig()

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.image_size % self.network.reduction:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of {self.network.reduction}")


class KlVae(LatentMapTokenizer):
    """Images to their latent map, row by row, and back. Tokens are latents without ``scaling_factor``.

    Args:
        config: see ``KlVaeConfig``.
    """

    family = "kl_vae"
    config_class = KlVaeConfig

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__(config)
        self.vae = KlAutoencoder(config.network)
        self.grid_size = config.image_size // config.network.reduction

    @property
    def latent_channels(self) -> int:
        return self.config.network.latent_channels

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.moments(images)

    def decode_map(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)
