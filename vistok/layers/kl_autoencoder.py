"""The KL autoencoder of latent diffusion (arXiv:2112.10752), from diffusers, frozen: images <-> latent maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vistok.errors import ConfigError


@dataclass(frozen=True)
class KlAutoencoderConfig:
    """Sizes of a KL autoencoder.

    Attributes:
        latent_channels: C of the latent map.
        block_channels: channels of each resolution; every one after the first halves the size.
        layers_per_block: residual blocks of each resolution.
        norm_groups: groups of its normalisation; they divide all ``block_channels``.
        scaling_factor: latents are multiplied by it for what is built on them, so that they are about as large as noise.
    """

    latent_channels: int = 16
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        if not self.block_channels or min(self.latent_channels, self.layers_per_block, self.norm_groups) < 1:
            raise ConfigError("latent_channels, layers_per_block and norm_groups are at least 1, and there is a block")
        if any(channels < 1 or channels % self.norm_groups for channels in self.block_channels):
            raise ConfigError(f"norm_groups {self.norm_groups} do not divide block_channels {self.block_channels}")
        if self.scaling_factor == 0.0:
            raise ConfigError("scaling_factor is not 0")

    @property
    def reduction(self) -> int:
        """Pixels a side of one position of the latent map."""
        return 2 ** (len(self.block_channels) - 1)


class KlAutoencoder(nn.Module):
    """``diffusers.AutoencoderKL`` for images in [0, 1], in fp32 and without gradients to its weights.

    Casting a model to a low precision leaves it in fp32, as the published tokenizers run it: only
    its device changes. Latents are as the network gives them, without ``scaling_factor``.

    Args:
        config: its sizes.
    """

    def __init__(self, config: KlAutoencoderConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # slow to import

        levels = len(config.block_channels)
        self.config = config
        self.net = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
        )
        self.requires_grad_(False)
        self.eval()

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> mean and log-variance (clamped to [-30, 20]), each [B, C, h, w], fp32."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = 2.0 * images.to(self._dtype) - 1.0
            mean, logvar = self.net.quant_conv(self.net.encoder(pixels)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W] around [0, 1], not clamped, fp32."""
        with torch.autocast(latents.device.type, enabled=False):
            pixels = self.net.decoder(self.net.post_quant_conv(latents.to(self._dtype))).float()
        return (pixels + 1.0) / 2.0

    def train(self, mode: bool = True) -> KlAutoencoder:
        """Stays in evaluation mode."""
        return super().train(False)

    @property
    def _dtype(self) -> torch.dtype:
        return self.net.quant_conv.weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KlAutoencoder:
        weight = self.net.quant_conv.weight
        probe = fn(weight.new_empty(0))
        if probe.dtype == weight.dtype:
            return super()._apply(fn, recurse)
        return super()._apply(lambda tensor: tensor.to(probe.device), recurse)


def sample_posterior(
    mean: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """mean + std * noise, [B, ...]; noise that is not given is drawn one image after the other."""
    if noise is None:
        noise = draw_noise(len(mean), mean.shape[1:], generator=generator)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean.device, mean.dtype)


def draw_noise(count: int, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
    """Normal noise [count, *shape], on the generator's device.

    It is drawn image by image, so an image's noise depends on those before it only.
    """
    device = generator.device if generator is not None else None
    return torch.stack([torch.randn(shape, generator=generator, device=device) for _ in range(count)])
