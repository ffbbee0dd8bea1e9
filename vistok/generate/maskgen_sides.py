"""The two kinds of tokens that MaskGen fills in: ids of a codebook, or latents with a diffusion head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.diffusion_head import DiffusionHead, guide_noise
from vistok.losses.diffusion import GaussianDiffusion

_NORM_EPS = 1e-6


class IdSide(nn.Module):
    """Ids in, logits of ids out, through one table.

    Args:
        codebook_size: K.
        num_tokens: L.
        width: D of the transformer.
        spare_rows: rows of the table after the mask token's, which nothing reads.
    """

    def __init__(self, codebook_size: int, num_tokens: int, width: int, *, spare_rows: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.embed = nn.Embedding(codebook_size + 1 + spare_rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))

    def init_weights(self) -> None:
        """As the transformer's own layers."""
        nn.init.trunc_normal_(self.embed.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, ids: Tensor, masked: Tensor) -> Tensor:
        """Ids [B, L], of which those where ``masked`` is True are hidden -> [B, L, D]."""
        return self.embed(torch.where(masked, self.codebook_size, ids)) + self.pos_embed

    def logits(self, hidden: Tensor) -> Tensor:
        """The transformer's states [..., D] -> [..., K]."""
        return F.linear(hidden, self.embed.weight[: self.codebook_size])


class LatentSide(nn.Module):
    """Latents in, conditions of a diffusion head out.

    Args:
        code_dim: C of a latent.
        num_tokens: L.
        width: D of the transformer.
        head_width, head_depth: of the diffusion head.
    """

    def __init__(self, code_dim: int, num_tokens: int, width: int, *, head_width: int, head_depth: int) -> None:
        super().__init__()
        self.proj = nn.Linear(code_dim, width)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        self.head_pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        self.head = DiffusionHead(code_dim, width, width=head_width, depth=head_depth)
        self.diffusion = GaussianDiffusion()

    def init_weights(self) -> None:
        """Tables as the transformer's own layers; the head has its own way."""
        for table in (self.mask_token, self.pos_embed, self.head_pos_embed):
            nn.init.normal_(table, std=0.02)
        self.head.init_weights()

    def forward(self, latents: Tensor, masked: Tensor) -> Tensor:
        """Latents [B, L, C], of which those where ``masked`` is True are hidden -> [B, L, D]."""
        x = torch.where(masked[..., None], self.mask_token, self.norm(self.proj(latents)))
        return x + self.pos_embed

    def conditions(self, hidden: Tensor) -> Tensor:
        """The transformer's states [B, L, D] -> what the head reads for each token [B, L, D]."""
        return hidden + self.head_pos_embed

    def losses(self, latents: Tensor, conditions: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The head's loss [B, L] for latents [B, L, C], with timesteps [B, L] and normal noise [B, L, C]."""
        rows = [x.flatten(0, 1) for x in (latents, conditions, timesteps, noise)]
        clean, condition, steps, added = rows
        noisy = self.diffusion.add_noise(clean, added, steps)
        output = self.head(noisy.to(condition.dtype), steps, condition)
        return self.diffusion.losses(output, clean, added, noisy, steps).view(timesteps.shape)

    def sample(
        self,
        conditions: Tensor,
        null_conditions: Tensor | None,
        noise: Tensor,
        diffusion: GaussianDiffusion,
        *,
        scale: float,
        temperature: float,
        clip_denoised: float = 0.0,
    ) -> Tensor:
        """Draw latents [M, C].

        Args:
            conditions: [M, D]; null_conditions: the same under the empty caption, or None for no guidance.
            noise: normal numbers [S, M, C].
            diffusion: the process in S steps.
            scale: of guidance, which moves the predicted noise and leaves the variance.
            temperature: of the steps' noise.
            clip_denoised: see ``GaussianDiffusion.reverse``.
        """
        both = conditions if null_conditions is None else torch.cat([conditions, null_conditions])

        def network(x: Tensor, timesteps: Tensor) -> Tensor:
            x = x.to(both.dtype)
            if null_conditions is None:
                return self.head(x, timesteps, both)
            output, null = self.head(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both).chunk(2)
            return guide_noise(output, null, scale)

        return diffusion.sample(network, noise, temperature=temperature, clip_denoised=clip_denoised)


def counts_left(num_tokens: int, steps: int) -> list[int]:
    """How many tokens are still hidden after each step: a quarter of a cosine, at least one less each, none at last.

    Where there are more steps than tokens, all but the last token come one a step, and the last one at the end.
    """
    left, counts = num_tokens, []
    for step in range(1, steps):
        left = max(1, min(left - 1, math.floor(num_tokens * math.cos(math.pi / 2 * step / steps))))
        counts.append(left)
    return [*counts, 0]
