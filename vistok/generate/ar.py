"""``digit_ar``: a causal transformer over token ids that reads and predicts a token digit by digit.

vistok's own small generator. The sequence is [condition, token 0, token 1, ...]; position i predicts token i. The condition is
a class or, where the model knows words, a text, read as a bag of words. Pre-norm blocks, learned positions. A token of a product codebook
(FSQ) is embedded as the sum of its digits' embeddings and predicted with one head a digit, which
trains far faster than a softmax over all ids; ``head="softmax"`` is that softmax.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError, VistokError, nearest
from vistok.generate.autoregressive import AutoregressiveGenerator
from vistok.generate.base import class_labels, evaluating
from vistok.generate.config import GeneratorConfig, check_config
from vistok.generate.digits import DigitCode, DigitEmbedding, DigitHead
from vistok.generate.kv_cache import KVCache
from vistok.generate.sampling import Drawn, SamplingConfig, uniform_of
from vistok.layers.transformer import Mlp
from vistok.tokens import Tokens

logger = logging.getLogger(__name__)

_EMBED_STD = 0.5
_MAX_TEXT = 16  # words of a text that are read


@dataclass(frozen=True)
class DigitARConfig(GeneratorConfig):
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
        class_dropout: the share of training rows whose condition is hidden, so that guidance works.
        max_words: how many words of the training captions it learns at most, the most frequent ones; 0 for classes only.
        text_share: with words, the share of the training rows with a condition that see their caption; the others see their
            class.
        words: these words.
        sampling: the defaults of ``generate``.
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
    max_words: int = 0
    text_share: float = 0.5
    words: tuple[str, ...] = ()
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_config(
            self,
            sizes=("num_tokens", "width", "depth", "num_heads"),
            shares=("dropout", "class_dropout"),
        )
        if self.max_words < 0 or len(self.words) > self.max_words or len(set(self.words)) < len(self.words):
            raise ConfigError(f"{len(self.words)} different words are more than max_words={self.max_words}")
        if not 0.0 <= self.text_share <= 1.0:
            raise ConfigError(f"text_share is from 0 to 1, got {self.text_share}")

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
        if config.words:
            self.word_embed = nn.Embedding(len(config.words), width)
            self._word_numbers = {word: number for number, word in enumerate(config.words)}
            self._told: set[str] = set()
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
        return self.config.num_classes > 0 or bool(self.config.words)

    @property
    def guidable(self) -> bool:
        return self.conditional and self.config.class_dropout > 0

    @property
    def draws_per_token(self) -> int:
        return self.code.num_digits

    def no_weight_decay(self) -> tuple[str, ...]:
        return (
            "pos_embed",
            "class_embed.*",
            "word_embed.*",
            "token_embed.*",
            "head.earlier.*",
            "*.hidden_bias",
            "*.out_bias",
        )

    def encode_condition(self, condition: Any) -> Tensor:
        """Classes, or texts, one or many -> int64 [B], -1 for the null condition; with words, [B, 1 + W].

        A class is a number or a name. Any other string is a text: of its words, those that the model knows. With words, a row is
        the class (-1 for none) and the numbers of W words (-1 for no word).

        Raises:
            VistokError: an unknown class, or a text of which no word is known.
        """
        config = self.config
        options = {"num_classes": config.num_classes, "class_names": config.class_names, "title": self._title}
        if not config.words:
            return class_labels(condition, **options).to(self.device)
        if isinstance(condition, Tensor):
            if condition.ndim == 2:
                return condition.to(self.device)
            labels = class_labels(condition, **options)
            return self._condition_rows(labels, [[]] * len(labels))
        entries = [condition] if condition is None or isinstance(condition, (str, int)) else list(condition)
        texts = [isinstance(entry, str) and entry not in config.class_names for entry in entries]
        labels = class_labels(
            [None if is_text else entry for entry, is_text in zip(entries, texts, strict=True)], **options
        )
        words = [self._known_words(entry) if is_text else [] for entry, is_text in zip(entries, texts, strict=True)]
        for entry, is_text, found in zip(entries, texts, words, strict=True):
            if is_text and not found:
                raise VistokError(
                    f"{self._title} knows no word of {entry!r}, and no such class; {nearest(entry, (*config.class_names, *config.words))}"
                )
        self._tell_unknown(
            word for entry, is_text in zip(entries, texts, strict=True) if is_text for word in split_words(entry)
        )
        return self._condition_rows(labels, words)

    def _tell_unknown(self, words: Iterable[str]) -> None:
        """Log words that are left out, each once for a model: search asks for the same text again and again."""
        new = [word for word in dict.fromkeys(words) if word not in self._word_numbers and word not in self._told]
        if new:
            self._told.update(new)
            logger.warning("%s does not know, and leaves out: %s", self._title, ", ".join(new))

    def null_condition(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, -1)

    def join_conditions(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])

    def training_condition(self, batch: Mapping[str, Any]) -> Tensor:
        """The class and the caption's words of every row; ``forward`` shows one of the two."""
        if not self.config.words:
            return super().training_condition(batch)
        return self._condition_rows(batch["label"], [self._known_words(caption) for caption in batch["caption"]])

    def sampling_condition(self, batch: Mapping[str, Any]) -> Tensor:
        """The class: with the words beside it, it would be read as in no step of training."""
        return super().training_condition(batch)

    @classmethod
    def data_facts(cls, values: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """The most frequent words of the captions, where ``values`` asks for words."""
        count = values.get("max_words", 0)
        frequency = Counter(word for caption in captions for word in dict.fromkeys(split_words(caption)))
        return {"words": tuple(word for word, _ in frequency.most_common(count))} if count else {}

    def _known_words(self, text: str) -> list[int]:
        numbers = (self._word_numbers.get(word) for word in dict.fromkeys(split_words(text)))
        return [number for number in numbers if number is not None][:_MAX_TEXT]

    def _condition_rows(self, labels: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
        rows = torch.full((len(words), 1 + _MAX_TEXT), -1, dtype=torch.int64)
        for row, numbers in zip(rows, words, strict=True):
            row[1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        rows[:, 0] = labels.to(rows.device)
        return rows.to(self.device)

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
        labels = condition
        if labels is None:
            null = self.encode_condition(None)
            labels = null.expand(len(ids), *null.shape[1:])
        if self.training and self.conditional:
            labels = self._hide(labels, sample_seeds)
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

    def _hide(self, condition: Tensor, sample_seeds: Tensor | None) -> Tensor:
        """The condition with parts hidden, row by row: class or words, and now and then both."""
        rows = condition[:, 0] if condition.ndim == 2 else condition
        chosen = uniform_of(rows, sample_seeds)
        dropped = chosen < self.config.class_dropout
        if condition.ndim == 1:
            return condition.masked_fill(dropped, -1)
        # The rest of the same number decides between class and words; a row that has only one of them keeps it.
        by_text = chosen - self.config.class_dropout > (1.0 - self.config.class_dropout) * (
            1.0 - self.config.text_share
        )
        has_text, has_class = (condition[:, 1:] >= 0).any(dim=1), rows >= 0
        by_text = (by_text & has_text) | ~has_class
        hidden = torch.cat([by_text[:, None], (~by_text)[:, None].expand(-1, condition.shape[1] - 1)], dim=1)
        return condition.masked_fill(hidden | dropped[:, None], -1)

    @torch.no_grad()
    def token_log_probs(self, tokens: Tokens, condition: Any = None) -> Tensor:
        self.check_tokens(tokens)
        labels = self.encode_condition(condition)
        if len(labels) == 1:
            labels = labels.expand(len(tokens), *labels.shape[1:])
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

    def _embed_class(self, condition: Tensor) -> Tensor:
        """[B] or [B, 1 + W] -> [B, 1, D]; -1 is the null class, which has the last row, and no word."""
        if condition.ndim == 1:
            return self.class_embed(condition.remainder(self.config.num_classes + 1))[:, None]
        words = condition[:, 1:]
        known = (words >= 0)[..., None]
        total = (self.word_embed(words.clamp_min(0)) * known).sum(dim=1) / known.sum(dim=1).clamp_min(1).sqrt()
        return (self.class_embed(condition[:, 0].remainder(self.config.num_classes + 1)) + total)[:, None]

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


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case: runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())
