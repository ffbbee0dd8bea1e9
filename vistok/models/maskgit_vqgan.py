"""MaskGIT-VQGAN: a 16x16 grid of 1,024 codes for a 256-pixel image.

Paper: MaskGIT (arXiv:2202.04200); a convolutional VQGAN without attention. Matches the checkpoint
``maskgit-vqgan-imagenet-f16-256.bin``, which is the proxy and the pixel decoder of the two-stage
TiTok models and the tokenizer of RAR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.layers.conv import ConvDecoder, ConvEncoder
from vistok.models.base import Tokenizer
from vistok.quantizers import VectorQuantizer
from vistok.tokens import Tokens


@dataclass(frozen=True)
class MaskGitVqganConfig:
    """Sizes of the codec.

    Attributes:
        image_size: pixels a side; the grid is ``image_size / 2 ** (len(multipliers) - 1)``.
        base_channels: channels of the level of full size, a multiple of 32.
        multipliers: channels of each level as multiples of ``base_channels``.
        num_blocks: residual blocks a level.
        code_dim: channels of a code.
        codebook_size: number of codes.
    """

    image_size: int = 256
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    code_dim: int = 256
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        for key in ("image_size", "base_channels", "num_blocks", "code_dim", "codebook_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ConfigError(f"multipliers are at least 1, one a level, got {self.multipliers}")
        if self.base_channels % 32:
            raise ConfigError(f"base_channels is a multiple of 32 (the norm's groups), got {self.base_channels}")
        if self.image_size % self.downsampling:
            raise ConfigError(f"image_size is a multiple of {self.downsampling}, got {self.image_size}")

    @property
    def downsampling(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (len(self.multipliers) - 1)


def make_pixel_decoder(config: MaskGitVqganConfig) -> ConvDecoder:
    """The decoding half alone, from code vectors [B, code_dim, h, w] to pixels."""
    return ConvDecoder(config.base_channels, config.multipliers, config.num_blocks, config.code_dim)


class MaskGitVqgan(Tokenizer):
    """A grid tokenizer: ids are row-major, and all of them are needed to decode.

    Args:
        config: sizes.
    """

    family = "maskgit_vqgan"
    config_class = MaskGitVqganConfig

    def __init__(self, config: MaskGitVqganConfig) -> None:
        super().__init__(config)
        self.encoder = ConvEncoder(config.base_channels, config.multipliers, config.num_blocks, config.code_dim)
        self.decoder = make_pixel_decoder(config)
        self.quantizer = VectorQuantizer(config.codebook_size, config.code_dim)

    @property
    def num_tokens(self) -> int:
        return (self.config.image_size // self.config.downsampling) ** 2

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("quantizer.codebook",)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to latents before quantisation, [B, h*w, C] row-major."""
        return self.encoder(images).flatten(2).transpose(1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Code vectors [B, h*w, C] to images [B, 3, H, W], not clamped."""
        grid = math.isqrt(latents.shape[1])
        return self.decoder(latents.transpose(1, 2).unflatten(2, (grid, grid)).to(self.dtype))

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        ids = self.quantizer(self.encode_latents(images.to(self.device, self.dtype))).ids
        return Tokens(
            ids=ids,
            codebook_size=self.codebook_size,
            family=self.family,
            model=self.name,
            weight_hash=self.weight_hash(),
        )

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Tokens to images [B, 3, H, W]; see ``Tokenizer.decode``."""
        self.check_tokens(tokens)
        images = self.decode_latents(self.quantizer.lookup(tokens.ids.to(self.device))).float()
        return images.clamp(0.0, 1.0) if clamp else images

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Training outputs: ``reconstruction``, ``ids`` and the quantizer's ``loss_*`` terms."""
        quantised = self.quantizer(self.encode_latents(images))
        out = {"reconstruction": self.decode_latents(quantised.latents), "ids": quantised.ids}
        return out | {f"loss_{key}": value for key, value in quantised.losses.items()}
