"""``digit_ar``: a causal transformer over token ids that reads and predicts a token digit by digit.

vistok's own small class-conditional generator. The sequence is [class, token 0, token 1, ...];
position i predicts token i. Pre-norm blocks, learned positions. A token of a product codebook
(FSQ) is embedded as the sum of its digits' embeddings and predicted with one head a digit, which
trains far faster than a softmax over all ids; ``head="softmax"`` is that softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError
from vistok.generate.autoregressive import AutoregressiveGenerator
from vistok.generate.base import class_labels, evaluating
from vistok.generate.digits import DigitCode, DigitEmbedding, DigitHead
from vistok.generate.kv_cache import KVCache
from vistok.generate.sampling import Drawn, SamplingConfig, uniform_of
from vistok.layers.transformer import Mlp
from vistok.tokens import Tokens

_EMBED_STD = 0.5


@dataclass(frozen=True)
class DigitARConfig:
    """Configuration of ``DigitAR``.

    Attributes:
        codebook_size: of the tokenizer: K, or the factors (FSQ levels) of which it is the product.
        num_tokens: L, the largest number of tokens.
        num_classes: number of classes; 0 for none.
        class_names: their names, which may then stand for the numbers; () for none.
        width, depth, num_heads, mlp_ratio: the transformer's size.
        head: ``digits_chain`` (each digit given the earlier ones of its token), ``digits`` (all digits
            independent given the prefix) or ``softmax`` (one over all ids).
        dropout: on embeddings and on the outputs of attention and MLP, in training.
        class_dropout: the share of training rows whose class is hidden, so that guidance works.
        sampling: the defaults of ``generate``.
        tokenizer_family, tokenizer_model, tokenizer_hash: of the tokenizer whose tokens it was trained on.
    """

    codebook_size: int | tuple[int, ...] = (8, 8, 8, 8)
    num_tokens: int = 32
    num_classes: int = 10
    class_names: tuple[str, ...] = ()
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    head: Literal["digits_chain", "digits", "softmax"] = "digits_chain"
    dropout: float = 0.0
    class_dropout: float = 0.1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tokenizer_family: str = ""
    tokenizer_model: str = ""
    tokenizer_hash: str = ""

    def __post_init__(self) -> None:
        factors = self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)
        if not factors or min(factors) < 2:
            raise ConfigError(f"codebook_size is two or more, or such factors; got {self.codebook_size}")
        if min(self.num_tokens, self.width, self.depth, self.num_heads) < 1 or self.num_classes < 0:
            raise ConfigError("num_tokens, width, depth and num_heads are 1 or more, num_classes 0 or more")
        if self.width % self.num_heads:
            raise ConfigError(f"the width {self.width} is not a multiple of the {self.num_heads} heads")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(f"{len(self.class_names)} class_names for {self.num_classes} classes")
        if not (0.0 <= self.dropout < 1.0 and 0.0 <= self.class_dropout < 1.0):
            raise ConfigError(
                f"dropout and class_dropout are from 0 to below 1, got {self.dropout}, {self.class_dropout}"
            )

    @property
    def factors(self) -> tuple[int, ...]:
        """The digits' levels: those of the codebook, or the whole codebook as one digit."""
        factors = self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)
        return (math.prod(factors),) if self.head == "softmax" else factors


class CausalBlock(nn.Module):
    """x += attention(norm1(x)); x += mlp(norm2(x)), where a position reads itself and what is before it."""

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0, mask: Tensor | None = None) -> Tensor:
        """[B, n, D] -> [B, n, D]; with a cache, ``x`` comes after what the cache holds of this ``layer``."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, n, D / heads]
        if cache is not None:
            key, value = cache.write(layer, key, value)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=cache is None)
        x = x + self.dropout(self.proj(out.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class DigitAR(AutoregressiveGenerator):
    """A class-conditional causal transformer over tokens, digit by digit."""

    family = "digit_ar"
    config_class = DigitARConfig
    config: DigitARConfig

    def __init__(self, config: DigitARConfig) -> None:
        super().__init__(config)
        width = config.width
        self.code = DigitCode(config.factors)
        self.class_embed = nn.Embedding(config.num_classes + 1, width)  # the last is the null class
        self.token_embed = DigitEmbedding(self.code, width)
        self.pos_embed = nn.Parameter(torch.empty(config.num_tokens, width))
        self.embed_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            CausalBlock(width, config.num_heads, mlp_ratio=config.mlp_ratio, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = DigitHead(self.code, width, autoregressive=config.head == "digits_chain")
        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self) -> None:
        # Measured on small runs: with GPT-2's 0.02 everywhere, a width of 128 learns several times slower.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBED_STD)
        nn.init.normal_(self.pos_embed, std=_EMBED_STD)
        for block in self.blocks:  # so that the residual stream keeps its size whatever the depth
            for last in (block.proj, block.mlp.fc2):
                nn.init.normal_(last.weight, std=(2 * self.config.depth * last.in_features) ** -0.5)
        self.head.init_weights()

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        return self.config.codebook_size

    @property
    def conditional(self) -> bool:
        return self.config.num_classes > 0

    @property
    def guidable(self) -> bool:
        return self.conditional and self.config.class_dropout > 0

    @property
    def draws_per_token(self) -> int:
        return self.code.num_digits

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("pos_embed", "class_embed.*", "token_embed.*", "head.earlier.*", "*.hidden_bias", "*.out_bias")

    def encode_condition(self, condition: Any) -> Tensor:
        """Class numbers or names, one or many -> int64 [B]; None and -1 are the null class, returned as -1."""
        config = self.config
        labels = class_labels(
            condition, num_classes=config.num_classes, class_names=config.class_names, title=self._title
        )
        return labels.to(self.device)

    def null_condition(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, -1)

    def join_conditions(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])

    def forward(
        self,
        ids: Tensor,
        condition: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The mean negative log-likelihood of a token, in nats; see ``Generator.forward``."""
        del progress  # nothing changes in the course of its training
        labels = torch.full_like(ids[:, 0], -1) if condition is None else condition
        if self.training and self.config.class_dropout > 0 and self.conditional:
            dropped = uniform_of(labels, sample_seeds) < self.config.class_dropout
            labels = labels.masked_fill(dropped, -1)
        digits = self.code.split(ids)
        hidden = self._hidden(digits, labels)
        losses = -self._score(hidden, digits)  # [B, L, D]
        if lengths is None:
            per_digit = losses.mean(dim=(0, 1))
        else:
            valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            per_digit = (losses * valid[..., None]).sum(dim=(0, 1)) / valid.sum().clamp_min(1)
        loss = per_digit.sum()
        return {"loss": loss, "nll_per_token": loss.detach(), "bits_per_token": loss.detach() / math.log(2)}

    @torch.no_grad()
    def token_log_probs(self, tokens: Tokens, condition: Any = None) -> Tensor:
        self.check_tokens(tokens)
        labels = self.encode_condition(condition)
        if len(labels) == 1:
            labels = labels.expand(len(tokens))
        digits = self.code.split(tokens.ids.to(self.device))
        with evaluating(self):
            scores = self._score(self._hidden(digits, labels), digits).sum(dim=-1)
        return scores * tokens.mask().to(self.device)

    def new_cache(self, num_rows: int) -> KVCache:
        return KVCache(
            num_layers=self.config.depth,
            num_rows=num_rows,
            num_heads=self.config.num_heads,
            head_dim=self.config.width // self.config.num_heads,
            max_length=self.num_tokens,  # the class and all tokens but the last
            dtype=self.dtype,
            device=self.device,
        )

    def read_condition(self, condition: Tensor, cache: KVCache) -> Tensor:
        return self._trunk(self._embed_class(condition) + self.pos_embed[:1], cache)[:, -1]

    def read_tokens(self, ids: Tensor, start: int, cache: KVCache) -> Tensor:
        positions = self.pos_embed[start + 1 : start + 1 + ids.shape[1]]  # the class stands before the tokens
        return self._trunk(self.token_embed(self.code.split(ids), self.code) + positions, cache)

    def draw_tokens(
        self, hidden: Tensor, uniforms: Tensor, sampling: SamplingConfig, *, null_hidden: Tensor | None = None
    ) -> Drawn:
        return self.head.sample(hidden, uniforms, sampling, null_hidden=null_hidden)

    def score_tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self._score(hidden, self.code.split(ids)).sum(dim=-1)

    @property
    def token_factors(self) -> tuple[int, ...]:
        return self.config.factors

    def factor_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        return self.head.next_logits(hidden, earlier)

    def _score(self, hidden: Tensor, digits: Tensor) -> Tensor:
        """Log-probabilities [B, n, D] of digits [B, n, D] under the states [B, n, W] that predict them."""
        logits = self.head(hidden, digits).float()
        return -F.cross_entropy(logits.flatten(0, -2), digits.flatten(), reduction="none").view(digits.shape)

    def _embed_class(self, labels: Tensor) -> Tensor:
        """[B] -> [B, 1, W]; -1 is the null class, which has the last row."""
        return self.class_embed(labels.remainder(self.config.num_classes + 1))[:, None]

    def _hidden(self, digits: Tensor, labels: Tensor) -> Tensor:
        """The states [B, L, W] that predict each of the tokens [B, L, D]."""
        tokens = self.token_embed(digits[:, :-1], self.code)
        x = torch.cat([self._embed_class(labels), tokens], dim=1)
        return self._trunk(x + self.pos_embed[: x.shape[1]])

    def _trunk(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Blocks and the last norm, [B, n, W] -> [B, n, W]."""
        x = self.embed_dropout(x)
        mask = None if cache is None else cache.mask(x.shape[1])
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache, layer, mask)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)
