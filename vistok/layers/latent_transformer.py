"""Latent-query transformers: picture -> a short sequence of latents -> picture.

The encoder appends learned queries to the patches of a picture and keeps what becomes of the
queries; the decoder appends the latents to mask tokens, one a patch, and keeps what becomes of
the mask tokens. The shape of TiTok (arXiv:2406.07550, section 3.2), used by several families.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.layers.transformer import Transformer


class LatentQueryEncoder(nn.Module):
    """Images to latents: [class, patches, queries] through a transformer, of which the queries are kept.

    Args:
        image_size: height and width in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch.
        num_latents: N, the number of queries.
        width, depth, num_heads: the transformer's size.
    """

    def __init__(
        self, *, image_size: int, patch_size: int, num_latents: int, width: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        num_patches = (image_size // patch_size) ** 2
        self.num_latents = num_latents
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches + 1, width))
        self.latent_tokens = nn.Parameter(torch.empty(1, num_latents, width))
        self.latent_pos_embed = nn.Parameter(torch.empty(1, num_latents, width))
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, num_heads)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D]."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, h*w, D]
        cls_token = self.cls_token.expand(len(images), -1, -1)
        latents = (self.latent_tokens + self.latent_pos_embed).expand(len(images), -1, -1)
        x = torch.cat([torch.cat([cls_token, patches], dim=1) + self.pos_embed, latents], dim=1)
        length = x.shape[1]
        x = self.transformer(self.norm_pre(x), keep=slice(length - self.num_latents, length))
        return self.norm_post(x)


class LatentDecoder(nn.Module):
    """Latents to a map of features: [class, mask tokens, latents, text] of which the mask tokens are kept.

    Any prefix of the latents is accepted, and nothing is padded.

    Args:
        grid_size: height and width of the map, in patches.
        latent_dim: C, channels of a latent.
        num_latents: N, the largest number of latents.
        width, depth, num_heads: the transformer's size.
        text_length, text_dim: positions and channels of text features that guide the decoder
            (TA-TiTok, arXiv:2501.07730); 0 for none.
    """

    def __init__(
        self,
        *,
        grid_size: int,
        latent_dim: int,
        num_latents: int,
        width: int,
        depth: int,
        num_heads: int,
        text_length: int = 0,
        text_dim: int = 0,
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.latent_embed = nn.Linear(latent_dim, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size**2 + 1, width))
        self.latent_pos_embed = nn.Parameter(torch.empty(1, num_latents, width))
        if text_length:
            self.text_embed = nn.Linear(text_dim, width)
            self.text_pos_embed = nn.Parameter(torch.empty(1, text_length, width))
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, num_heads)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, latents: Tensor, *, text: Tensor | None = None, grid: Tensor | None = None) -> Tensor:
        """Latents [B, L <= N, C] (and text features [B, T, E]) -> features [B, h*w, D], row-major.

        Args:
            latents: the first L latents of each image.
            text: features that guide the decoder, where it was built for them.
            grid: [B, h*w, D], added to the mask tokens: a first picture to improve upon.
        """
        batch, length = latents.shape[:2]
        num_patches = self.grid_size**2
        masks = self.mask_token.expand(batch, num_patches, -1)
        if grid is not None:
            masks = masks + grid
        masks = torch.cat([self.cls_token.expand(batch, -1, -1), masks], dim=1) + self.pos_embed
        parts = [masks, self.latent_embed(latents) + self.latent_pos_embed[:, :length]]
        if text is not None:
            parts.append(self.text_embed(text) + self.text_pos_embed)
        x = self.transformer(self.norm_pre(torch.cat(parts, dim=1)), keep=slice(1, num_patches + 1))
        return self.norm_post(x)
