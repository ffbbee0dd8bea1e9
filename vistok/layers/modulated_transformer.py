"""Pre-norm blocks with QK-norm and SwiGLU, without biases and affine norms, optionally modulated by a time embedding.

The modulation (adaLN, arXiv:2212.09748) scales and shifts what goes into attention and MLP, and gates
what comes out; patches and registers may have their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.layers.ragged import RaggedLayout

NORM_EPS = 1e-5
# (query, key, value, scale) -> output, all [..., heads, d].
Attend = Callable[..., Tensor]


def plain_norm(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis without learned terms; low precisions are computed in fp32 inside."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


class QkNormAttention(nn.Module):
    """Self-attention whose queries and keys are normalised head by head.

    The logits are scaled by 8 / d, which equals the usual d^-1/2 at d = 64 only (as in muP, arXiv:2203.03466).

    Args:
        width: D, a multiple of ``head_dim``.
        head_dim: d.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"the width {width} is not a multiple of the heads' width {head_dim}")
        self.head_dim = head_dim
        self.scale = 8.0 / head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, attend: Attend, *, keep: slice | None = None) -> Tensor:
        """Rows [..., D] -> [..., D], the way ``attend`` connects them; ``keep``: only these positions of axis 1 ask."""
        query = self._heads(self.query(x if keep is None else x[:, keep]))
        key, value = self._heads(self.key(x)), self._heads(self.value(x))
        query, key = plain_norm(query).to(value.dtype), plain_norm(key).to(value.dtype)
        return self.proj(attend(query, key, value, scale=self.scale).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202).

    Args:
        width: D.
        hidden_width: inside; None is 8/3 of the width.
        bias: whether the three have biases.
    """

    def __init__(self, width: int, hidden_width: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        hidden_width = int(2 * 4 * width / 3) if hidden_width is None else hidden_width
        self.gate = nn.Linear(width, hidden_width, bias=bias)
        self.up = nn.Linear(width, hidden_width, bias=bias)
        self.down = nn.Linear(hidden_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PlainBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.attn = QkNormAttention(width, head_dim)
        self.mlp = SwiGlu(width)

    def forward(self, x: Tensor, attend: Attend, keep: slice | None = None) -> Tensor:
        """[B, L, D] -> [B, L', D], computing only the positions ``keep``."""
        x = (x if keep is None else x[:, keep]) + self.attn(plain_norm(x), attend, keep=keep)
        return x + self.mlp(plain_norm(x))


class ModulatedBlock(nn.Module):
    """A block whose six terms of modulation come from a time embedding.

    Args:
        width, head_dim: its size.
        kinds: 2 for patches and registers modulated apart, 1 for all alike.
    """

    def __init__(self, width: int, head_dim: int, *, kinds: int = 2) -> None:
        super().__init__()
        self.kinds = kinds
        self.attn = QkNormAttention(width, head_dim)
        self.mlp = SwiGlu(width)
        self.modulation = nn.Linear(width, 6 * kinds * width)

    def terms(self, activated: Tensor) -> Tensor:
        """silu(time embedding) [M, D] -> [M, kinds, 6, D]: gates, then shift and scale of attention, then of the MLP."""
        return self.modulation(activated).unflatten(-1, (self.kinds, 6, -1))

    def forward(self, x: Tensor, terms: Tensor, layout: RaggedLayout) -> Tensor:
        """Packed rows [N, D] -> [N, D]; ``terms`` are [M, kinds, 6, D], M = 1 or the number of sequences."""
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = terms.unbind(2)
        update = self.attn(layout.modulate(plain_norm(x), scale_attn, shift_attn), layout.attend)
        x = layout.gated_sum(x, gate_attn, update)
        update = self.mlp(layout.modulate(plain_norm(x), scale_mlp, shift_mlp))
        return layout.gated_sum(x, gate_mlp, update)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear over sinusoidal features of a time."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_features, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[M, F] -> [M, D]."""
        return self.fc2(F.silu(self.fc1(features.to(self.fc1.weight.dtype))))


def run_block(block: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """Call a block, keeping its activations for the backward pass or not."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
