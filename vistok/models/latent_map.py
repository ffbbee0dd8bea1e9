"""What tokenizers whose tokens are a map of continuous latents, row by row, have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.layers.kl_autoencoder import sample_posterior
from vistok.models.base import Tokenizer
from vistok.tokens import Tokens


class LatentMapTokenizer(Tokenizer):
    """A KL autoencoder as a tokenizer: one token a position of its map.

    Attributes:
        grid_size: positions a side.
    """

    continuous = True
    grid_size: int

    @property
    def num_tokens(self) -> int:
        return self.grid_size**2

    @property
    def codebook_size(self) -> None:
        return None

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C."""

    @abstractmethod
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> mean and log-variance, each [B, C, h, w]."""

    @abstractmethod
    def decode_map(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W] around [0, 1], not clamped."""

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        mean, logvar = self.moments(images.to(self.device, self.dtype))
        latents = mean if generator is None else sample_posterior(mean, logvar, generator=generator)
        names = {"family": self.family, "model": self.name, "weight_hash": self.weight_hash()}
        return Tokens(latents=latents.flatten(2).transpose(1, 2), **names)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Latents to images [B, 3, H, W]; see ``Tokenizer.decode``."""
        self.check_tokens(tokens)
        if condition is not None:
            raise VistokError(f"{self._label} takes no condition")
        channels = self.latent_channels
        if tokens.latents.shape[2] != channels:
            raise VistokError(f"{self._label} decodes latents of {channels} channels, got {tokens.latents.shape[2]}")
        latents = tokens.latents.to(self.device, self.dtype).transpose(1, 2)
        images = self.decode_map(latents.unflatten(2, (self.grid_size, self.grid_size))).float()
        return images.clamp_(0.0, 1.0) if clamp else images
