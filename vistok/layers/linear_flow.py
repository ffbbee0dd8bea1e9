"""The flow that is exact for images whose principal components are Gaussian: where a flow decoder may start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vistok.layers.linear_codec import CLIP_SIGMAS, LinearCodec
from vistok.layers.patches import patchify, unpatchify

_MEASURED_MAPS = 1024
_LEAST_VARIANCE = 1e-6


class LinearFlow(nn.Module):
    """Principal components as ordered latents, and the velocity that leads from noise to maps with these latents.

    Given a prefix of the latents, a kept component is known up to its rounding, a dropped one is
    normal with its variance, and what no component describes is normal patch by patch, with one
    covariance for all patches. For such maps x0, noise n and
    x = t n + (1 - t) x0, the expected n - x0 given x is linear, component by component. Frozen:
    everything is a buffer.

    Args:
        map_size: height and width of a map of 3 channels.
        num_tokens: N.
        code_dim: C, components a token.
        patch_size: height and width of a patch.
    """

    def __init__(self, map_size: int, num_tokens: int, code_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.grid_size = patch_size, (map_size // patch_size, map_size // patch_size)
        values = 3 * patch_size**2
        self.codec = LinearCodec(map_size, num_tokens, code_dim)
        self.register_buffer("rounding_variance", torch.ones(num_tokens * code_dim))
        self.register_buffer("patch_basis", torch.eye(values))  # orthonormal rows
        self.register_buffer("patch_variance", torch.ones(values))

    @torch.no_grad()
    def fit(self, maps: Tensor, quantise: Callable[[Tensor], Tensor], *, seed: int = 0) -> None:
        """Fit to maps [M, 3, H, W].

        Args:
            maps: M may be smaller than the number of components.
            quantise: latents [B, N, C] to those that decoding will see.
            seed: of the decomposition.
        """
        self.codec.fit(maps, seed=seed)
        some = maps[:: max(1, len(maps) // _MEASURED_MAPS)]
        flat = some.flatten(1) - self.codec.mean
        coefficients = flat @ self.codec.basis.t()
        rounded = quantise(self.codec.encode(some)).flatten(1) * self.codec.scale
        self.rounding_variance.copy_((coefficients - rounded).square().mean(dim=0).clamp_min(_LEAST_VARIANCE))
        rest = (flat - coefficients @ self.codec.basis).unflatten(1, maps.shape[1:])
        patches = patchify(rest, self.patch_size).flatten(0, 1)
        variance, vectors = torch.linalg.eigh(patches.t() @ patches / len(patches))
        self.patch_variance.copy_(variance.clamp_min(_LEAST_VARIANCE))
        self.patch_basis.copy_(vectors.t())

    def encode(self, maps: Tensor) -> Tensor:
        """Maps [B, 3, H, W] -> latents [B, N, C], most values within [-1, 1]."""
        return self.codec.encode(maps)

    def velocity(self, x: Tensor, times: Tensor, latents: Tensor, keep: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The expected velocity of noised maps, and the expected clean maps, both [S, 3, H, W].

        Args:
            x: [B, 3, H, W]; S is a multiple of B, and sequence s reads ``x[s % B]`` and ``latents[s % B]``.
            times: [S] or [1], in [0, 1]; 1 is noise.
            latents: [B, L, C], rounded; those past a sequence's ``keep`` are not read.
            keep: S numbers of leading latents.
        """
        codec, repeats = self.codec, len(keep) // len(x)
        known = torch.zeros(len(x), codec.num_tokens, codec.code_dim, device=x.device)
        known[:, : latents.shape[1]] = latents
        lengths = torch.tensor(list(keep), device=x.device)
        mask = torch.arange(codec.num_tokens, device=x.device) < lengths[:, None]  # [S, N]
        mask = mask.repeat_interleave(codec.code_dim, dim=1)  # [S, N * C]
        mean = codec.mean + torch.where(mask, known.flatten(1).repeat(repeats, 1) * codec.scale, 0.0) @ codec.basis
        variance = torch.where(mask, self.rounding_variance, (codec.scale / CLIP_SIGMAS).square())
        t = times.float()[:, None]
        noised = x.float().flatten(1).repeat(repeats, 1) - (1.0 - t) * mean
        coefficients = noised @ codec.basis.t()
        rest = (noised - coefficients @ codec.basis).unflatten(1, x.shape[1:])
        patches = patchify(rest, self.patch_size) @ self.patch_basis.t() * _slope(self.patch_variance, t)[:, None]
        rest = unpatchify(patches @ self.patch_basis, self.patch_size, self.grid_size)
        velocity = (coefficients * _slope(variance, t)) @ codec.basis - mean
        return rest + velocity.unflatten(1, x.shape[1:]), mean.unflatten(1, x.shape[1:])


def _slope(variance: Tensor, t: Tensor) -> Tensor:
    """What the expected n - r is a multiple of, given y = t n + (1 - t) r, for normal n and r of this variance."""
    return (t - (1.0 - t) * variance) / (t.square() + (1.0 - t).square() * variance)
