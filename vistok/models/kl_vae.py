"""A KL autoencoder by itself, as a tokenizer of continuous tokens: one for each position of its latent map.

Matches ``EPFL-VILAB/flextok_vae_c4``, ``_c8`` and ``_c16``, in which FlexTok works, and other
autoencoders of that shape. Paper: latent diffusion, arXiv:2112.10752.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.errors import ConfigError, VistokError
from vistok.layers.kl_autoencoder import KlAutoencoder, KlAutoencoderConfig, sample_posterior
from vistok.models.base import Tokenizer
from vistok.tokens import Tokens


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


class KlVae(Tokenizer):
    """Images to their latent map, row by row, and back. Tokens are latents without ``scaling_factor``.

    Args:
        config: see ``KlVaeConfig``.
    """

    family = "kl_vae"
    config_class = KlVaeConfig
    continuous = True

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__(config)
        self.vae = KlAutoencoder(config.network)
        self.grid_size = config.image_size // config.network.reduction

    @property
    def num_tokens(self) -> int:
        return self.grid_size**2

    @property
    def codebook_size(self) -> None:
        return None

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        mean, logvar = self.vae.moments(images.to(self.device))
        latents = mean if generator is None else sample_posterior(mean, logvar, generator=generator)
        names = {"family": self.family, "model": self.name, "weight_hash": self.weight_hash()}
        return Tokens(latents=latents.flatten(2).transpose(1, 2), **names)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Latents to images [B, 3, H, W]; see ``Tokenizer.decode``."""
        self.check_tokens(tokens)
        if condition is not None:
            raise VistokError(f"{self._label} takes no condition")
        if tokens.latents.shape[2] != self.config.network.latent_channels:
            raise VistokError(
                f"{self._label} decodes latents of {self.config.network.latent_channels} channels, "
                f"got {tokens.latents.shape[2]}"
            )
        latents = tokens.latents.to(self.device).transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        images = self.vae.decode(latents)
        return images.clamp_(0.0, 1.0) if clamp else images
