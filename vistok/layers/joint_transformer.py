"""Blocks that two streams share: each has its own weights, and both are read by one attention (MM-DiT).

Stable Diffusion 3, arXiv:2403.03206, section 4: adaptive norms without learned terms, no QK-norm, tanh GELU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.layers.transformer import Mlp

_NORM_EPS = 1e-6


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift for x [B, L, D] and terms [B, D]; the norm has no learned terms."""
    return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS) * (1 + scale[:, None]) + shift[:, None]


class AdaptiveNorm(nn.Module):
    """A norm scaled and shifted by a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; ``activated`` is silu(condition), [B, D]."""
        scale, shift = self.modulation(activated).chunk(2, dim=-1)
        return modulated_norm(x, scale, shift)


class JointBlock(nn.Module):
    """One attention over tokens and text, and an MLP for each; a condition modulates both streams.

    Args:
        width: D, of both streams.
        num_heads: number of heads.
        mlp_ratio: width of the MLPs over D.
        last: whether nothing reads the text stream after it. It then gives keys and values only; its
            queries are a published block's parameters that nothing depends on, and are not trained.
    """

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float = 4.0, last: bool = False) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"the width {width} is not a multiple of the {num_heads} heads")
        self.num_heads, self.last = num_heads, last
        self.modulation = nn.Linear(width, 6 * width)
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.mlp = Mlp(width, int(width * mlp_ratio), approximate="tanh")
        self.text_query, self.text_key, self.text_value = (nn.Linear(width, width) for _ in range(3))
        if last:
            self.text_norm = AdaptiveNorm(width)
            self.text_query.requires_grad_(False)
        else:
            self.text_modulation = nn.Linear(width, 6 * width)
            self.text_proj = nn.Linear(width, width)
            self.text_mlp = Mlp(width, int(width * mlp_ratio), approximate="tanh")

    def forward(self, x: Tensor, text: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, D] and text [B, T, D] -> both again, the text as it came where the block is the last.

        ``activated`` is silu(condition), [B, D].
        """
        shift, scale, gate, *mlp_terms = self.modulation(activated).chunk(6, dim=-1)
        hidden = modulated_norm(x, scale, shift)
        if self.last:
            text_hidden = self.text_norm(text, activated)
        else:
            text_shift, text_scale, text_gate, *text_mlp_terms = self.text_modulation(activated).chunk(6, dim=-1)
            text_hidden = modulated_norm(text, text_scale, text_shift)
        out = self._attend(hidden, text_hidden)
        length = x.shape[1]
        x = x + gate[:, None] * self.proj(out[:, :length])
        x = _mlp_update(x, self.mlp, *mlp_terms)
        if self.last:
            return x, text
        text = text + text_gate[:, None] * self.text_proj(out[:, length:])
        return x, _mlp_update(text, self.text_mlp, *text_mlp_terms)

    def _attend(self, x: Tensor, text: Tensor) -> Tensor:
        """[B, L, D] and [B, T, D] -> what the tokens read, then (where asked for) what the text reads: [B, L + T, D]."""
        queries = [self.query(x)] if self.last else [self.query(x), self.text_query(text)]
        query = self._heads(torch.cat(queries, dim=1))
        key = self._heads(torch.cat([self.key(x), self.text_key(text)], dim=1))
        value = self._heads(torch.cat([self.value(x), self.text_value(text)], dim=1))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _mlp_update(x: Tensor, mlp: Mlp, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return x + gate[:, None] * mlp(modulated_norm(x, scale, shift))


class JointTransformer(nn.Module):
    """A stack of joint blocks and a last adaptive norm of the tokens."""

    def __init__(self, width: int, depth: int, num_heads: int, *, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            JointBlock(width, num_heads, mlp_ratio=mlp_ratio, last=index == depth - 1) for index in range(depth)
        )
        self.norm = AdaptiveNorm(width)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, L, D], text [B, T, D] and condition [B, D] -> tokens [B, L, D]."""
        activated = F.silu(condition)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x, text = checkpoint(block, x, text, activated, use_reentrant=False)
            else:
                x, text = block(x, text, activated)
        return self.norm(x, activated)
