"""Principal components of images as a codec: the best linear coarse-to-fine code there is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A latent of 1 stands for this many standard deviations of its component: beyond, it is clipped.
CLIP_SIGMAS = 2.5
_FIT_ITERATIONS = 4


class LinearCodec(nn.Module):
    """Images to the coefficients of their principal components, in order of variance, and back.

    Frozen: maps are buffers, saved with the weights. Token t holds components t*C .. (t+1)*C - 1.

    Args:
        image_size: pixels a side.
        num_tokens: N.
        code_dim: C, components a token.
    """

    def __init__(self, image_size: int, num_tokens: int, code_dim: int) -> None:
        super().__init__()
        self.image_size, self.num_tokens, self.code_dim = image_size, num_tokens, code_dim
        values = 3 * image_size**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(num_tokens * code_dim, values))  # orthonormal rows
        self.register_buffer("scale", torch.ones(num_tokens * code_dim))

    @torch.no_grad()
    def fit(self, images: Tensor, *, seed: int = 0, mixed: bool = False) -> None:
        """Fit to images [M, 3, H, W]; M may be smaller than the number of components.

        Args:
            images: float RGB.
            seed: of the decomposition, and of the mixture.
            mixed: turn the components by a random rotation: the same space, of which every token then holds about as much as any
                other, so that none comes first.
        """
        flat = images.flatten(1).float()
        mean = flat.mean(dim=0)
        count = len(self.basis)
        rank = min(count, *flat.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, sigma, vectors = torch.svd_lowrank(flat - mean, q=rank, niter=_FIT_ITERATIONS)
            rotation = torch.linalg.qr(torch.randn(rank, rank)).Q if mixed else None
        deviations = sigma / max(1, len(flat) - 1) ** 0.5
        components = vectors.t()
        if rotation is not None:
            components = rotation @ components
            deviations = (rotation.square() @ deviations.square()).sqrt()
        basis = torch.zeros_like(self.basis)
        basis[:rank] = components
        scale = torch.ones_like(self.scale)
        scale[:rank] = (CLIP_SIGMAS * deviations).clamp_min(1e-6)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.scale.copy_(scale)

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, C], most values within [-1, 1]."""
        coefficients = (images.flatten(1) - self.mean) @ self.basis.t() / self.scale
        return coefficients.unflatten(1, (self.num_tokens, self.code_dim))

    def decode(self, latents: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """The first L tokens [B, L, C], or those of them that are ``kept`` ([B, L], 1 or 0) -> [B, 3, H, W]."""
        latents = latents if kept is None else latents * kept[..., None]
        flat = latents.flatten(1)
        count = flat.shape[1]
        pixels = self.mean + (flat * self.scale[:count]) @ self.basis[:count]
        return pixels.unflatten(1, (3, self.image_size, self.image_size))

    def prefix_errors(self, images: Tensor, *, quantise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Root mean square errors of [B, 3, H, W] decoded from their first 0, 1, ..., N tokens: [B, N + 1].

        Args:
            images: float RGB.
            quantise: what happens to latents [B, N, C] on their way; None is nothing.
        """
        latents = self.encode(images)
        lost = torch.zeros_like(latents) if quantise is None else latents - quantise(latents)
        scale = self.scale.view(self.num_tokens, self.code_dim)
        gained = ((latents * scale).square() - (lost * scale).square()).sum(dim=-1)  # the basis is orthonormal
        left = (images.flatten(1) - self.mean).square().sum(dim=1, keepdim=True) - F.pad(gained, (1, 0)).cumsum(dim=1)
        return (left.clamp_min(0.0) / len(self.mean)).sqrt()
