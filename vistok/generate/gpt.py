"""``gpt``: a decoder-only transformer over token ids, as LlamaGen (arXiv:2406.06525) and GigaTok (arXiv:2504.08736) train it.

The sequence is [class, token 0, token 1, ...]; position i predicts token i. RMSNorm before attention
and SwiGLU, no biases. GigaTok's sequence tokenizers go with learned positions; grid tokenizers, as
LlamaGen's, with rotations by row and column. Loads GPT_{B,XL,XXL}256_*.pt of YuuTennYi/GigaTok.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError
from vistok.generate.base import evaluating
from vistok.generate.class_conditions import ClassConditions
from vistok.generate.config import GeneratorConfig, check_config
from vistok.generate.kv_cache import KVCache, causal_attention
from vistok.generate.sampling import SamplingConfig
from vistok.generate.softmax import SoftmaxGenerator
from vistok.layers.modulated_transformer import SwiGlu
from vistok.layers.positions import rotary_2d, rotate_pairs
from vistok.tokens import Tokens

_NORM_EPS = 1e-5
_INIT_STD = 0.02
_TERMS = 6  # of modulation: shift, scale and gate of attention, then of the MLP


@dataclass(frozen=True)
class GptConfig(GeneratorConfig):
    """Configuration of ``Gpt``.

    Attributes:
        codebook_size: of the tokenizer: K, or the factors of which it is the product.
        num_tokens: L, the largest number of tokens.
        num_classes: number of classes; 0 for none.
        class_names: their names, which may then stand for the numbers; () for none.
        width, depth, num_heads: the transformer's size.
        hidden_width: of the MLPs; None is 8/3 of the width, rounded up to a multiple of 256.
        positions: ``learned``, or ``rotary_2d`` for tokens that are a square grid, row by row.
        modulated: shift, scale and gate every block by the class (adaLN-zero); no published model does.
        qk_norm: normalise queries and keys head by head; no published model does.
        dropout: on embeddings and on the outputs of attention and MLP, in training.
        class_dropout: the share of training rows whose class is hidden, so that guidance works.
        init: ``published``, or ``local``: weights as large as their inputs want, which small ones need to start.
        sampling: the defaults of ``generate``.
    """

    codebook_size: int | tuple[int, ...] = 16384
    num_tokens: int = 256
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_width: int | None = None
    positions: Literal["learned", "rotary_2d"] = "learned"
    modulated: bool = False
    qk_norm: bool = False
    dropout: float = 0.1
    class_dropout: float = 0.1
    init: Literal["published", "local"] = "published"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_config(
            self,
            sizes=("num_tokens", "width", "depth", "num_heads", "mlp_width"),
            shares=("dropout", "class_dropout"),
        )
        if self.positions == "rotary_2d" and (self.grid_size**2 != self.num_tokens or self.width // self.num_heads % 4):
            raise ConfigError(
                f"rotary_2d wants a square number of tokens and heads of a multiple of four, got num_tokens "
                f"{self.num_tokens} and heads of {self.width // self.num_heads}; positions: learned takes any"
            )

    @property
    def mlp_width(self) -> int:
        """Inside the MLPs."""
        return default_hidden_width(self.width) if self.hidden_width is None else self.hidden_width

    @property
    def grid_size(self) -> int:
        """Rows and columns, where the tokens are a square grid."""
        return math.isqrt(self.num_tokens)


def default_hidden_width(width: int) -> int:
    """8/3 of the width, rounded up to a multiple of 256."""
    return -(-int(8 * width / 3) // 256) * 256


class GptBlock(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)), where a position reads itself and what is before it."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.norm1 = nn.RMSNorm(width, eps=_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=_NORM_EPS)
        self.mlp = SwiGlu(width, config.mlp_width)
        self.dropout = nn.Dropout(config.dropout)
        head_dim = width // config.num_heads
        self.query_norm = nn.LayerNorm(head_dim, eps=_NORM_EPS) if config.qk_norm else None
        self.key_norm = nn.LayerNorm(head_dim, eps=_NORM_EPS) if config.qk_norm else None
        self.modulation = nn.Linear(width, _TERMS * width) if config.modulated else None

    def forward(
        self,
        x: Tensor,
        terms: Tensor | None = None,
        rotations: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[B, n, D] -> [B, n, D].

        Args:
            x: the new positions.
            terms: [B, 6, D], of the modulation.
            rotations: [n, d/2, 2] of the positions.
            cache: what is before ``x``, at this ``layer``; ``mask`` is its mask.
        """
        if terms is None:
            x = x + self._drop(self._attend(self.norm1(x), rotations, cache, layer, mask))
            return x + self._drop(self.mlp(self.norm2(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = terms[:, :, None].unbind(1)  # [B, 1, D] each
        update = self._attend(self.norm1(x) * (1 + scale1) + shift1, rotations, cache, layer, mask)
        x = x + gate1 * self._drop(update)
        return x + gate2 * self._drop(self.mlp(self.norm2(x) * (1 + scale2) + shift2))

    def _drop(self, x: Tensor) -> Tensor:
        """Dropout that costs no call where a token is generated."""
        return self.dropout(x) if self.training else x

    def _attend(
        self, x: Tensor, rotations: Tensor | None, cache: KVCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, n, D / heads]
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotations is not None:
            query, key = rotate_pairs(query, rotations), rotate_pairs(key, rotations)
        out = causal_attention(query, key, value, cache, layer=layer, mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Gpt(ClassConditions, SoftmaxGenerator):
    """A class-conditional causal transformer with one softmax over all ids."""

    family = "gpt"
    config_class = GptConfig
    config: GptConfig

    def __init__(self, config: GptConfig) -> None:
        super().__init__(config)
        width = config.width
        self.class_embed = nn.Embedding(config.num_classes + 1, width)  # the last is the null class
        self.token_embed = nn.Embedding(config.vocab_size, width)
        if config.positions == "learned":
            # One more than is ever read, as published: the position after the last token.
            self.pos_embed = nn.Parameter(torch.empty(config.num_tokens + 1, width))
        else:
            grid = rotary_2d(config.grid_size, config.grid_size, width // config.num_heads)
            # The class has cosine and sine 0, so its query and key vanish: LlamaGen's models are trained so.
            rotations = torch.cat([torch.zeros_like(grid[:1]), grid])
            self.register_buffer("rotations", rotations, persistent=False)
        self.embed_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(GptBlock(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.modulation = nn.Linear(width, 2 * width) if config.modulated else None
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self) -> None:
        local = self.config.init == "local"
        for name, parameter in self.named_parameters():
            if name.endswith(("modulation.weight", "bias")) or (name == "head.weight" and not local):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                linear = not name.endswith("embed.weight") and name != "pos_embed"
                std = parameter.shape[1] ** -0.5 if linear else 0.5
                if name.endswith(
                    ("proj.weight", "down.weight")
                ):  # so that the stream keeps its size whatever the depth
                    std /= math.sqrt(2 * self.config.depth)
                nn.init.normal_(parameter, std=std if local else _INIT_STD)

    def progress(self, position: int, num_tokens: int) -> float:
        """0 at the first token, 1 at the last, as the published schedules count."""
        return position / max(1, num_tokens - 1)

    def sampling_at(self, sampling: SamplingConfig, position: int) -> SamplingConfig:
        """The first token has the full scale under every schedule, as published."""
        return sampling if position == 0 else super().sampling_at(sampling, position)

    def states(self, ids: Tensor, condition: Tensor) -> Tensor:
        return self._run(*self._whole(ids, condition), depth=self.config.depth, last=True)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    @torch.no_grad()
    def features(self, tokens: Tokens, *, pool: bool = True) -> Tensor:
        """What a linear probe reads: the states after the first half of the blocks, under the null class.

        Args:
            tokens: B rows of all ``num_tokens`` tokens.
            pool: the mean over the positions, [B, D]; else all of them, [B, L, D].
        """
        self.check_tokens(tokens)
        ids = tokens.ids.to(self.device)
        with evaluating(self):
            x, terms = self._whole(ids, torch.full_like(ids[:, 0], -1))
            x = self._run(x, terms, depth=self.config.depth // 2, last=False)
        return x.mean(dim=1) if pool else x

    def new_cache(self, num_rows: int, *, dtype: torch.dtype | None = None, static: bool | None = None) -> KVCache:
        """An empty cache.

        Args:
            num_rows: B.
            dtype: of keys and values; None is the weights'.
            static: see ``KVCache``; None is on CUDA.
        """
        config = self.config
        head_dim = config.width // config.num_heads
        return self._make_cache(
            num_rows, depth=config.depth, num_heads=config.num_heads, head_dim=head_dim, dtype=dtype, static=static
        )

    def read_condition(self, condition: Tensor, cache: KVCache) -> Tensor:
        x = self._embed_class(condition)
        terms = self._modulate(x)
        if terms is not None:
            cache.keep(terms=terms)
        return self._advance(x, cache)[:, -1]

    def read_tokens(self, ids: Tensor, start: int, cache: KVCache) -> Tensor:
        del start  # the cache knows
        x = self.token_embed(ids)
        if self.config.positions == "learned":
            x = x + self.pos_embed[cache.positions(ids.shape[1])]
        return self._advance(x, cache)

    def read_on(self, x: Tensor, cache: KVCache) -> Tensor:
        return self._run(x, cache.context.get("terms"), depth=self.config.depth, last=True, cache=cache)

    def _embed_class(self, labels: Tensor) -> Tensor:
        """[B] -> [B, 1, D], at its position; -1 is the null class, which has the last row."""
        x = self.class_embed(labels.remainder(self.config.num_classes + 1))[:, None]
        return x + self.pos_embed[:1] if self.config.positions == "learned" else x

    def _modulate(self, condition: Tensor) -> Tensor | None:
        """The class at its position [B, 1, D] -> the terms of all blocks and of the last norm, [B, 6 depth + 2, D]."""
        if self.modulation is None:
            return None
        condition = nn.functional.silu(condition)
        terms = [layer.modulation(condition) for layer in (*self.blocks, self)]
        return torch.cat([part.unflatten(-1, (-1, self.config.width))[:, 0] for part in terms], dim=1)

    def _whole(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The embedded class and all ids but the last, and the terms of modulation."""
        first = self._embed_class(labels)
        tokens = self.token_embed(ids[:, :-1])
        if self.config.positions == "learned":
            tokens = tokens + self.pos_embed[1 : ids.shape[1]]
        return torch.cat([first, tokens], dim=1), self._modulate(first)

    def _run(self, x: Tensor, terms: Tensor | None, *, depth: int, last: bool, cache: KVCache | None = None) -> Tensor:
        """The first ``depth`` blocks, and the last norm if wanted, [B, n, D] -> [B, n, D]."""
        x = self.embed_dropout(x)
        positions = slice(0, x.shape[1]) if cache is None else cache.positions(x.shape[1])
        mask = None if cache is None else cache.mask(x.shape[1])
        rotations = self.rotations[positions] if self.config.positions == "rotary_2d" else None
        for layer, block in enumerate(self.blocks[:depth]):
            own = None if terms is None else terms[:, _TERMS * layer : _TERMS * (layer + 1)]
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, own, rotations, use_reentrant=False)
            else:
                x = block(x, own, rotations, cache, layer, mask)
        if not last:
            return x
        x = self.norm(x)
        if terms is None:
            return x
        shift, scale = terms[:, -2:, None].unbind(1)
        return x * (1 + scale) + shift
