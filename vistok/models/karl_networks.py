"""The two networks of KARL (arXiv:2507.07995): an encoder under a condition, and a decoder of the latent tokens that are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.transformer import Transformer
from vistok.models.titok import TransformerSize

# Positions a side for which there are embeddings.
TABLE_SIDE = 64


class ConditionedEncoder(nn.Module):
    """[condition, map, latent tokens] through a transformer, of which the latent tokens are kept.

    Args:
        channels: of the map that patches are added to.
        patch_size: pixels a side of a position.
        num_latents: N.
        num_conditions: rows of the table of conditions.
        size: of the transformer.
    """

    def __init__(
        self, *, channels: int, patch_size: int, num_latents: int, num_conditions: int, size: TransformerSize
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, size.width - channels, kernel_size=patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.empty(size.width, TABLE_SIDE, TABLE_SIDE))
        self.latent_tokens = nn.Parameter(torch.empty(num_latents, size.width))
        self.conditions = nn.Parameter(torch.empty(num_conditions, size.width))
        self.norm_pre = nn.LayerNorm(size.width)
        self.transformer = Transformer(size.width, size.depth, size.num_heads)

    def forward(self, images: Tensor, latents: Tensor, conditions: Tensor, count: int) -> Tensor:
        """Images [B, 3, H, W], their map [B, h*w, C], rows of the table int64 [B], T -> [B, T, D]."""
        patches = self.patch_embed(images)  # [B, D - C, h, w]
        positions = grid_positions(self.pos_embed, patches.shape[-2:])
        grid = torch.cat([patches.flatten(2).transpose(1, 2), latents.to(patches.dtype)], dim=-1) + positions
        tokens = self.latent_tokens[:count].expand(len(images), -1, -1)
        x = torch.cat([self.conditions[conditions][:, None], grid, tokens], dim=1)
        return self.transformer(self.norm_pre(x), keep=slice(x.shape[1] - count, x.shape[1]))


class SparseLatentDecoder(nn.Module):
    """Latents at chosen positions to a map of features: [mask tokens, latents] of which the mask tokens are kept.

    Args:
        grid_size: height and width of the map, in positions.
        latent_dim: C, channels of a latent.
        num_latents: N, the number of their positions.
        out_dim: O, channels of the features.
        size: of the transformer.
    """

    def __init__(
        self, *, grid_size: int, latent_dim: int, num_latents: int, out_dim: int, size: TransformerSize
    ) -> None:
        super().__init__()
        width = size.width
        self.grid_size = grid_size
        self.latent_embed = nn.Linear(latent_dim, width)
        self.latent_pos_embed = nn.Parameter(torch.empty(num_latents, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(width, TABLE_SIDE, TABLE_SIDE))
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, size.depth, size.num_heads)
        self.norm_post = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, out_dim))

    def forward(
        self,
        latents: Tensor,
        *,
        positions: Tensor | None = None,
        kept: Tensor | None = None,
        mixed: bool = False,
        grid: Tensor | None = None,
    ) -> Tensor:
        """Latents [B, L, C] -> features [B, h*w, O], row by row.

        Args:
            latents: those of each image.
            positions: int64 [B, L], of each latent; None for 0..L-1.
            kept: bool [B, L], latents that are there; the others change nothing. None: all.
            mixed: see ``KarlConfig.mixed_masks``.
            grid: [B, h*w, D], added to the mask tokens: a first picture to improve upon.
        """
        batch, num_patches = len(latents), self.grid_size**2
        masks = self.mask_token + grid_positions(self.pos_embed, (self.grid_size, self.grid_size))
        masks = masks.expand(batch, -1, -1) if grid is None else masks + grid
        table = self.latent_pos_embed
        rows = table[: latents.shape[1]] if positions is None else table[positions]
        x = torch.cat([masks, self.latent_embed(latents) + rows], dim=1)
        mask = None
        if kept is not None:
            seen = F.pad(kept, (num_patches, 0), value=True)  # [B, h*w + L]
            num_heads = self.transformer.blocks[0].attn.num_heads
            # That nobody attends to a latent is all it takes: what it attends to itself is not read.
            mask = _mixed_masks(seen, num_heads) if mixed else seen[:, None, None]
        x = self.transformer(self.norm_pre(x), keep=slice(0, num_patches), mask=mask)
        return self.head(self.norm_post(x))


def grid_positions(table: Tensor, size: Sequence[int]) -> Tensor:
    """A table [D, S, S], thinned out evenly to ``size`` = (h, w) -> [1, h*w, D], row by row."""
    return F.interpolate(table[None], size=tuple(size), mode="nearest").flatten(2).transpose(1, 2)


def _mixed_masks(seen: Tensor, num_heads: int) -> Tensor:
    """What published training masked: bool [B, heads, L, L] for bool [B, L], heads and images in each other's order."""
    batch, length = seen.shape
    pairs = seen[:, :, None] & seen[:, None, :] | torch.eye(length, dtype=torch.bool, device=seen.device)
    image = torch.arange(batch * num_heads, device=seen.device) % batch
    return pairs[image].unflatten(0, (batch, num_heads))
