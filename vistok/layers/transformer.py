"""Pre-norm transformer blocks: LayerNorm, self-attention, LayerNorm, MLP (An Image is Worth 16x16 Words, arXiv:2010.11929)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SelfAttention(nn.Module):
    """Multi-head self-attention over a whole sequence, with biases and no dropout.

    Args:
        width: D, a multiple of ``num_heads``.
        num_heads: number of heads.
        qkv_bias: whether queries, keys and values have biases.
    """

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"the width {width} is not a multiple of the {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, keep: slice = slice(None), mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L', D]: the outputs at the positions ``keep``, which attend to all of ``x``.

        Args:
            x: the sequence.
            keep: the positions that are asked for.
            mask: bool, of a shape that broadcasts to [B, heads, L, L] (what attends, to what): True where it may.
        """
        width = x.shape[-1]
        if keep == slice(None):
            query, key, value = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            biases = (None, None) if bias is None else (bias[:width], bias[width:])
            query = self._heads(F.linear(x[:, keep], weight[:width], biases[0]))
            key, value = (self._heads(part) for part in F.linear(x, weight[width:], biases[1]).chunk(2, dim=-1))
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., keep, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, heads, L', D / heads]
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU (exact, by erf, unless its tanh approximation is asked for), Linear."""

    def __init__(self, width: int, hidden_width: int, *, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(self.act(self.fc1(x)))


class TransformerBlock(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        hidden_width: int | None = None,
        norm_eps: float = 1e-5,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio) if hidden_width is None else hidden_width)

    def forward(self, x: Tensor, *, keep: slice = slice(None), mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L', D], computing only the positions ``keep``; ``mask`` as in ``SelfAttention``."""
        x = x[:, keep] + self.attn(self.norm1(x), keep=keep, mask=mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A stack of blocks. The last one computes only the positions that are asked for.

    The positions that nobody reads still serve as keys and values, so the result is the one of the
    full computation; what is saved is their share of the last block's MLP and projections.
    """

    def __init__(self, width: int, depth: int, num_heads: int, *, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, *, keep: slice = slice(None), mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L', D]; ``keep`` is a slice of positions with explicit bounds, ``mask`` as in ``SelfAttention``."""
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            part = keep if index == last else slice(None)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, keep=part, mask=mask, use_reentrant=False)
            else:
                x = block(x, keep=part, mask=mask)
        return x
