"""Transformers that read a whole sequence at once: post-norm blocks as in BERT, and blocks with long skips as in U-ViT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.modulated_transformer import run_block
from vistok.layers.transformer import Mlp, TransformerBlock

_POST_NORM_EPS = 1e-12


class PostNormBlock(nn.Module):
    """x = norm1(x + attention(x)); x = norm2(x + mlp(x)) (arXiv:1810.04805).

    Queries, keys and values have a projection each, as published weights have it.

    Args:
        width: D, a multiple of ``num_heads``.
        num_heads: number of heads.
        hidden_width: inside the MLP.
        dropout: on the attention and on what both parts add, in training.
    """

    def __init__(self, width: int, num_heads: int, hidden_width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=_POST_NORM_EPS)
        self.mlp = Mlp(width, hidden_width)
        self.norm2 = nn.LayerNorm(width, eps=_POST_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        heads = [
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        out = F.scaled_dot_product_attention(*heads, dropout_p=self.dropout.p if self.training else 0.0)
        x = self.norm1(x + self.dropout(self.proj(out.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.dropout(self.mlp(x)))


class PostNormTransformer(nn.Module):
    """A norm and dropout of the input, then post-norm blocks."""

    def __init__(self, width: int, depth: int, num_heads: int, hidden_width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_POST_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, num_heads, hidden_width, dropout=dropout) for _ in range(depth)
        )
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = run_block(block, x, recompute=self.gradient_checkpointing and self.training)
        return x


class SkipTransformer(nn.Module):
    """Pre-norm blocks; the second half also reads what the first half made, the last first (arXiv:2209.12152).

    Args:
        width: D, a multiple of ``num_heads``.
        depth: blocks of both halves, an even number; one more stands between them.
        num_heads: number of heads.
        hidden_width: inside the MLPs.
    """

    def __init__(self, width: int, depth: int, num_heads: int, hidden_width: int) -> None:
        super().__init__()

        def block() -> TransformerBlock:
            return TransformerBlock(width, num_heads, hidden_width=hidden_width, qkv_bias=False)

        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        recompute = self.gradient_checkpointing and self.training
        kept = []
        for block in self.in_blocks:
            x = run_block(block, x, recompute=recompute)
            kept.append(x)
        x = run_block(self.mid_block, x, recompute=recompute)
        for skip, block in zip(self.skips, self.out_blocks, strict=True):
            x = run_block(block, skip(torch.cat([x, kept.pop()], dim=-1)), recompute=recompute)
        return self.norm(x)
