"""FlexAR's blocks and their options, as apple/ml-l3m puts them together: norms, causal attention, attention to a text, MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.generate.kv_cache import KVCache, causal_attention
from vistok.layers.modulated_transformer import SwiGlu

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


@dataclass(frozen=True)
class NormConfig:
    """A normalisation.

    Attributes:
        kind: ``layer`` (mean 0 and variance 1) or ``rms`` (mean square 1).
        eps: added to the variance or mean square.
        gain: a learned factor.
        bias: a learned shift; ``layer`` only.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-6
    gain: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if self.kind == "rms" and self.bias:
            raise ConfigError("an rms norm has no bias: set bias to false")

    def make(self, width: int) -> nn.Module:
        """The module over a last axis of this width; low precisions are computed in fp32 inside."""
        if self.kind == "rms":
            return nn.RMSNorm(width, eps=self.eps, elementwise_affine=self.gain)
        if self.bias and not self.gain:
            return ShiftNorm(width, eps=self.eps)
        return nn.LayerNorm(width, eps=self.eps, elementwise_affine=self.gain, bias=self.bias)


class ShiftNorm(nn.Module):
    """A layer norm with a learned shift and no factor."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.layer_norm(x, x.shape[-1:], bias=self.bias, eps=self.eps)


@dataclass(frozen=True)
class AttentionConfig:
    """One kind of attention.

    Attributes:
        num_heads: number of heads.
        qkv_bias, proj_bias: which projections have biases.
        qk_norm: of queries and keys, head by head; None for none.
        scale: of the products; None is head_dim^-1/2.
    """

    num_heads: int = 12
    qkv_bias: bool = False
    proj_bias: bool = False
    qk_norm: NormConfig | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ConfigError(f"num_heads is 1 or more, got {self.num_heads}")


class _Attention(nn.Module):
    """What both kinds share: the output projection and the norms of queries and keys."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ConfigError(f"the width {width} is not a multiple of the {config.num_heads} heads")
        self.num_heads, self.scale = config.num_heads, config.scale
        head_dim = width // config.num_heads
        self.proj = nn.Linear(width, width, bias=config.proj_bias)
        self.query_norm = config.qk_norm.make(head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = config.qk_norm.make(head_dim) if config.qk_norm else nn.Identity()

    def heads(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, heads, n, D / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CausalAttention(_Attention):
    """Of a position to itself and what is before it."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__(width, config)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, mask: Tensor | None) -> Tensor:
        """[B, n, D] -> [B, n, D]; with a cache, ``x`` comes after what it holds of this ``layer``."""
        query, key, value = (self.heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self.query_norm(query), self.key_norm(key)
        out = causal_attention(query, key, value, cache, layer=layer, mask=mask, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2))


class TextAttention(_Attention):
    """Of every position to a text, whose keys and values are computed once."""

    def __init__(self, width: int, text_width: int, config: AttentionConfig) -> None:
        super().__init__(width, config)
        self.query = nn.Linear(width, width, bias=config.qkv_bias)
        self.key = nn.Linear(text_width, width, bias=config.qkv_bias)
        self.value = nn.Linear(text_width, width, bias=config.qkv_bias)

    def read(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """The text's keys and values, [B, m, text_width] -> twice [B, heads, m, D / heads]."""
        return self.key_norm(self.heads(self.key(text))), self.heads(self.value(text))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[B, n, D] -> [B, n, D]; ``mask`` is bool [B, 1, 1, m], True at the text's words."""
        query = self.query_norm(self.heads(self.query(x)))
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2))


class ActivationMlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(
        self, width: int, hidden_width: int, *, out_width: int | None = None, activation: Activation, bias: bool
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width, bias=bias)
        self.fc2 = nn.Linear(hidden_width, out_width or width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., out_width]."""
        return self.fc2(self.activation(self.fc1(x)))


class FlexARBlock(nn.Module):
    """x += attention(norm1(x)); where there is a text, x += reading(norm_read(x), text); x += mlp(norm2(x))."""

    def __init__(
        self,
        width: int,
        *,
        attention: AttentionConfig,
        reading: AttentionConfig | None,
        text_width: int | None = None,
        norm: NormConfig,
        mlp: Activation | Literal["swiglu"],
        hidden_width: int,
        mlp_bias: bool,
    ) -> None:
        super().__init__()
        self.norm1 = norm.make(width)
        self.attn = CausalAttention(width, attention)
        self.norm_read = norm.make(width) if reading else None
        self.read = TextAttention(width, text_width or width, reading) if reading else None
        self.norm2 = norm.make(width)
        self.mlp = (
            SwiGlu(width, hidden_width, bias=mlp_bias)
            if mlp == "swiglu"
            else ActivationMlp(width, hidden_width, activation=mlp, bias=mlp_bias)
        )

    def forward(
        self,
        x: Tensor,
        text: tuple[Tensor, Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[B, n, D] -> [B, n, D]; ``text`` has keys, values and mask, as ``TextAttention`` takes them."""
        x = x + self.attn(self.norm1(x), cache, layer, mask)
        if self.read is not None:
            x = x + self.read(self.norm_read(x), *text)
        return x + self.mlp(self.norm2(x))
