"""The grid tokenizer below an adaptive one: what KARL and ALIT read beside patches, and what makes their pixels.

Three kinds. ``vqgan``: the transformer reads MaskGIT-VQGAN's latents before quantisation, and gives logits over its
codes, of which the expected code vector is decoded. ``kl``: it reads scaled latents of a KL autoencoder and gives such
latents. ``pixels`` (house): there is none, and it gives the pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.layers.kl_autoencoder import sample_posterior
from vistok.layers.patches import patchify, unpatchify
from vistok.models.ldm_kl import LdmKl, LdmKlConfig
from vistok.models.maskgit_vqgan import MaskGitVqgan, MaskGitVqganConfig

BaseKind = Literal["vqgan", "kl", "pixels"]


@dataclass(frozen=True)
class GridTargets:
    """What a stage on latents learns.

    Attributes:
        codes: [B, h*w, C], the code vectors, or scaled latents.
        ids: int64 [B, h*w], of ``vqgan``; else None.
    """

    codes: Tensor
    ids: Tensor | None = None


class GridBase(nn.Module):
    """A grid tokenizer as a map of positions, row by row.

    Args:
        kind: see above.
        image_size: pixels a side.
        patch_size: pixels a side of a position.
        vqgan, kl: sizes of the network of that kind.
    """

    def __init__(
        self, kind: BaseKind, *, image_size: int, patch_size: int, vqgan: MaskGitVqganConfig, kl: LdmKlConfig
    ) -> None:
        super().__init__()
        self.kind, self.image_size, self.patch_size = kind, image_size, patch_size
        self.grid_size = image_size // patch_size
        self.codec: MaskGitVqgan | LdmKl | None = None
        if kind == "pixels":
            self.channels, self.out_channels = 0, 3 * patch_size**2
        elif kind == "vqgan":
            self.codec = MaskGitVqgan(vqgan)
            self.channels, self.out_channels = vqgan.code_dim, vqgan.codebook_size
        else:
            self.codec = LdmKl(kl)
            self.channels = self.out_channels = kl.latent_channels

    def encode(
        self, images: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> [B, h*w, C], where C may be 0.

        Args:
            images: float RGB.
            generator: draws a sample of the posterior of ``kl``, image by image; without it and ``noise``, the mean.
            noise: [B, C, h, w], the posterior's noise.
        """
        if self.codec is None:
            return images.new_empty(len(images), self.grid_size**2, 0)
        if isinstance(self.codec, MaskGitVqgan):
            return self.codec.encode_latents(images)
        mean, logvar = self.codec.moments(images)
        if generator is not None or noise is not None:
            mean = sample_posterior(mean, logvar, generator=generator, noise=noise)
        return (mean * self.codec.config.scaling_factor).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def targets(self, images: Tensor, latents: Tensor) -> GridTargets:
        """What the transformer should give for images whose map ``latents`` [B, h*w, C] is."""
        if self.codec is None:
            return GridTargets(patchify(images, self.patch_size))
        if isinstance(self.codec, MaskGitVqgan):
            quantised = self.codec.quantizer(latents)
            return GridTargets(self.codec.quantizer.lookup(quantised.ids), quantised.ids)
        return GridTargets(latents.detach())

    def features(self, out: Tensor) -> Tensor:
        """What the transformer gives, [B, h*w, O], as code vectors or latents: the expected code where it gives logits."""
        if isinstance(self.codec, MaskGitVqgan):
            return out.softmax(dim=-1) @ self.codec.quantizer.codebook
        return out

    def decode(self, out: Tensor) -> Tensor:
        """What the transformer gives, [B, h*w, O] -> images [B, 3, H, W], not clamped."""
        values = self.features(out)
        if self.codec is None:
            return unpatchify(values, self.patch_size, (self.grid_size, self.grid_size))
        if isinstance(self.codec, MaskGitVqgan):
            return self.codec.decode_latents(values)
        # Not divided by the scaling factor: published decoders were tuned to scaled latents.
        return self.codec.decode_map(values.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size)))

    def noise_shape(self) -> tuple[int, int, int] | None:
        """Of the posterior's noise of one image; None where there is none."""
        return (self.channels, self.grid_size, self.grid_size) if self.kind == "kl" else None


def check_base(
    kind: BaseKind, image_size: int, patch_size: int, vqgan: MaskGitVqganConfig, kl: LdmKlConfig, width: int
) -> None:
    """Raise a ``ConfigError`` unless the base fits an encoder of ``width`` on patches of ``patch_size``."""
    if min(image_size, patch_size) < 1 or image_size % patch_size:
        raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if kind == "pixels":
        return
    config, channels = (vqgan, vqgan.code_dim) if kind == "vqgan" else (kl, kl.latent_channels)
    if (config.image_size, config.downsampling) != (image_size, patch_size):
        raise ConfigError(
            f"base: {kind} makes maps of {config.image_size}-pixel images with {config.downsampling} pixels a position; "
            f"image_size and patch_size are {image_size} and {patch_size}"
        )
    if channels >= width:
        raise ConfigError(f"the encoder's width {width} holds {channels} channels of the base, and those of patches")
