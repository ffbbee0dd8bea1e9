"""Generators that write tokens in order: generation over a KV cache, and rollouts that a search can branch.

A ``Rollout`` is a batch of unfinished rows whose past is computed once. Rows are extended, reordered
and branched; the cache follows, and no prefix is ever read twice.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.generate.base import GenerationResult, Generator, evaluating
from vistok.generate.kv_cache import KVCache
from vistok.generate.sampling import Drawn, SamplingConfig, filter_logits, guide_logits, row_noise, sample_several
from vistok.generate.weight_layout import few_rows
from vistok.tokens import Tokens

_MAX_SPREAD = 1 << 18  # ids whose probabilities are all computed at once


class AutoregressiveGenerator(Generator):
    """A generator of tokens in order. A family implements the abstract methods below besides the contract's."""

    autoregressive = True

    @property
    def compiled(self) -> bool:
        """Whether passes of one token run as a compiled program."""
        return False

    @property
    def reads_features(self) -> bool:
        """Whether another network computes what it reads as a condition, also as the null condition."""
        return False

    @property
    @abstractmethod
    def draws_per_token(self) -> int:
        """How many random numbers a token takes."""

    @abstractmethod
    def new_cache(self, num_rows: int) -> KVCache:
        """An empty cache with room for the condition and all tokens but the last, which nothing follows."""

    @abstractmethod
    def read_condition(self, condition: Any, cache: KVCache) -> Tensor:
        """Read the condition into an empty cache; the states [B, W] that predict the first token."""

    @abstractmethod
    def read_tokens(self, ids: Tensor, start: int, cache: KVCache) -> Tensor:
        """Read ids [B, n], which stand at ``start`` and on; the states [B, n, W] that predict what follows each."""

    def after_first_draw(self, given: Tensor, cache: KVCache) -> int:
        """Told once, when a rollout has drawn its first token; few families do anything.

        Args:
            given: the ids that it began with, int64 [B, n], n maybe 0; the cache has read them.
            cache: the rollout's.
        Returns:
            how many positions of every row it has read again.
        """
        del given, cache
        return 0

    @abstractmethod
    def draw_tokens(
        self, hidden: Tensor, uniforms: Tensor, sampling: SamplingConfig, *, null_hidden: Tensor | None = None
    ) -> Drawn:
        """Draw the next ids [B] from states [B, W], with uniform numbers [B, draws_per_token]."""

    def draw_branches(
        self,
        hidden: Tensor,
        uniforms: Tensor,
        sampling: SamplingConfig,
        *,
        null_hidden: Tensor | None = None,
        replacement: bool = True,
    ) -> Drawn:
        """Draw the next id of every row n times, [B, n], with uniform numbers [B, n, draws_per_token]; the first is as ``draw_tokens`` draws it.

        Here from the probabilities of all ids, which are the products of their factors'; filters work on the factors, one by one.

        Raises:
            VistokError: a codebook too large to be spread out, or fewer than n different ids are possible.
        """
        if math.prod(self.token_factors) > _MAX_SPREAD:
            raise VistokError(
                f"{self._title} has {math.prod(self.token_factors)} ids, too many to weigh all; draw one branch a row"
            )
        plain, spread = self._spread_ids(hidden, null_hidden, sampling)
        whole = dataclasses.replace(
            sampling, temperature=0.0 if sampling.greedy else 1.0, top_k=0, top_p=1.0, min_p=0.0, cfg_scale=1.0
        )
        if sampling.greedy:
            indices = sample_several(spread, uniforms[..., 0], whole).indices
        else:  # the first is what one draw gives, factor by factor; the others are drawn as whole ids
            indices = self.draw_tokens(hidden, uniforms[:, 0], sampling, null_hidden=null_hidden).indices[:, None]
            if uniforms.shape[1] > 1:
                left = spread if replacement else spread.scatter(-1, indices, float("-inf"))
                others = sample_several(left, uniforms[:, 1:, 0], whole, replacement=replacement).indices
                indices = torch.cat([indices, others], dim=1)
        return Drawn(indices, plain.gather(-1, indices), spread.gather(-1, indices))

    def _spread_ids(
        self, hidden: Tensor, null_hidden: Tensor | None, sampling: SamplingConfig
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all ids [B, K], in their order: the model's, and guided and filtered ones."""
        rows = len(hidden)
        digits = torch.zeros(1, 0, dtype=torch.int64, device=hidden.device)  # [n, d]: all values of the factors so far
        ids, place = digits.sum(dim=1), 1
        plain = spread = torch.zeros(rows, 1, device=hidden.device)
        for level in self.token_factors:
            count = len(digits)
            earlier = digits.repeat(rows, 1)
            logits, null = (
                None if state is None else self.factor_logits(state.repeat_interleave(count, 0), earlier).float()
                for state in (hidden, null_hidden)
            )
            guided = guide_logits(logits, null, sampling)
            guided = guided if sampling.greedy else filter_logits(guided, sampling)
            plain, spread = (
                (total[..., None] + part.log_softmax(dim=-1).view(rows, count, level)).flatten(1)
                for total, part in ((plain, logits), (spread, guided))
            )
            values = torch.arange(level, device=hidden.device)
            digits = torch.cat([digits.repeat_interleave(level, 0), values.repeat(count)[:, None]], dim=1)
            ids, place = (ids[:, None] + place * values).flatten(), place * level
        order = ids.argsort()
        return plain[:, order], spread[:, order]

    @abstractmethod
    def score_tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities [B, n] of ids [B, n] under the states [B, n, W] that predict them."""

    @property
    def token_factors(self) -> tuple[int, ...]:
        """Values of each factor of a token that ``factor_logits`` gives, the first one fastest; one factor: the id."""
        size = self.codebook_size
        return (math.prod(size) if isinstance(size, tuple) else size,)

    @abstractmethod
    def factor_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Logits [B, K] of a token's next factor, from states [B, W] and its factors before that one, int64 [B, n]."""

    @abstractmethod
    def null_condition(self, condition: Any) -> Any:
        """The null condition for as many rows."""

    @abstractmethod
    def join_conditions(self, first: Any, second: Any) -> Any:
        """The rows of both."""

    def guidance_condition(self, condition: Any, sampling: SamplingConfig) -> Any:
        """What guidance leads away from, for as many rows: the null condition, but where a family's options say otherwise."""
        del sampling
        return self.null_condition(condition)

    def sampling_at(self, sampling: SamplingConfig, position: int) -> SamplingConfig:
        """The settings of the token at this position."""
        return sampling.at(min(1.0, self.progress(position, sampling.cfg_tokens or self.num_tokens)))

    def progress(self, position: int, num_tokens: int) -> float:
        """The share of generation that is done when the token at this position of so many is drawn: what guidance schedules read."""
        return position / num_tokens

    def token_noise(self, seeds: Sequence[int]) -> Tensor:
        """Uniform numbers [B, num_tokens, draws_per_token], a function of each row's seed; token t reads [:, t]."""
        return row_noise(seeds, (self.num_tokens, self.draws_per_token)).to(self.device)

    @torch.no_grad()
    def start(self, condition: Any, *, sampling: SamplingConfig | None = None, prefix: Tokens | None = None) -> Rollout:
        """A rollout with one row a condition.

        Args:
            condition: as ``generate`` takes it.
            sampling: how its tokens will be drawn; None is the model's default.
            prefix: tokens to begin with, one row a condition, all of one length.
        """
        encoded = self.encode_condition(condition)
        self._check_prefix(prefix, len(encoded), self.num_tokens)
        return Rollout(self, encoded, sampling or self.sampling, prefix=None if prefix is None else prefix.ids)

    def _generate(
        self,
        condition: Any,
        num: int,
        length: int,
        prefix: Tokens | None,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> GenerationResult:
        with few_rows(self, len(seeds) * (2 if sampling.guided else 1), length):
            rollout = Rollout(self, condition, sampling, prefix=None if prefix is None else prefix.ids)
            rollout.branch(num)
            rollout.extend(length - rollout.length, self.token_noise(seeds))
        return GenerationResult(
            tokens=rollout.tokens(),
            seeds=tuple(seeds),
            token_forwards=rollout.token_forwards,
            log_probs=rollout.log_probs,
            draw_log_probs=rollout.draw_log_probs,
        )


class Rollout:
    """Rows of tokens under way.

    Attributes:
        length: t, tokens of every row so far.
        token_forwards: positions read so far, counted row by row; guidance counts twice.
    """

    def __init__(
        self,
        model: AutoregressiveGenerator,
        condition: Any,
        sampling: SamplingConfig,
        *,
        prefix: Tensor | None = None,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.num_rows = len(condition)
        self.length = self._num_given = 0
        self.token_forwards = 0
        shape = (self.num_rows, model.num_tokens)
        self._ids = torch.zeros(shape, dtype=torch.int64, device=model.device)
        self._log_probs = torch.zeros(2, *shape, device=model.device)  # the model's, and of the draws
        if sampling.guided:
            condition = model.join_conditions(condition, model.guidance_condition(condition, sampling))
        self._cache = model.new_cache(len(condition))
        with torch.no_grad(), evaluating(model):
            self._hidden: Tensor | None = model.read_condition(condition, self._cache)
        self.token_forwards += len(condition) * self._cache.length
        if prefix is not None and prefix.shape[1]:
            self._start_from(prefix.to(model.device))

    @property
    def ids(self) -> Tensor:
        """int64 [B, t]."""
        return self._ids[:, : self.length]

    @property
    def log_probs(self) -> Tensor:
        """[B, t]: of each token under the model's conditional distribution."""
        return self._log_probs[0, :, : self.length]

    @property
    def draw_log_probs(self) -> Tensor:
        """[B, t]: of each token under the distribution it was drawn from; 0 in a prefix that was given."""
        return self._log_probs[1, :, : self.length]

    def tokens(self) -> Tokens:
        """The rows so far, as ``Tokens`` of the model's tokenizer."""
        return self.model.as_tokens(self.ids.clone())

    @torch.no_grad()
    def fan_out(self, num: int, noise: Tensor, *, replacement: bool = True) -> None:
        """Draw the next token ``num`` times: a row becomes ``num`` rows side by side that differ in it.

        Under greedy sampling these are the ``num`` most likely tokens, best first.

        Args:
            num: branches a row, 1 or more.
            noise: uniform numbers [B, num, draws_per_token], in the order of the draws.
            replacement: whether branches of a row may be equal.
        Raises:
            VistokError: the family cannot, or fewer than ``num`` different tokens are possible.
        """
        drawn = self.draw_next(noise, replacement=replacement)
        self.branch(num)
        self.append(Drawn(drawn.indices.flatten(), drawn.log_probs.flatten(), drawn.draw_log_probs.flatten()))

    @torch.no_grad()
    def draw_next(self, noise: Tensor, *, replacement: bool = True) -> Drawn:
        """Candidates [B, n] for the next token, as ``fan_out`` draws them; the rows stay as they are."""
        with evaluating(self.model):
            hidden, null = self._split(self._next_hidden())
            return self.model.draw_branches(
                hidden,
                noise,
                self.model.sampling_at(self.sampling, self.length),
                null_hidden=null,
                replacement=replacement,
            )

    @torch.no_grad()
    def extend(self, num_new: int, noise: Tensor) -> None:
        """Draw ``num_new`` more tokens.

        Args:
            num_new: 0 or more.
            noise: uniform numbers [B, num_tokens, draws_per_token]; the token at position t reads ``noise[:, t]``.
        """
        with evaluating(self.model):
            for _ in range(num_new):
                hidden, null = self._split(self._next_hidden())
                drawn = self.model.draw_tokens(
                    hidden,
                    noise[:, self.length],
                    self.model.sampling_at(self.sampling, self.length),
                    null_hidden=null,
                )
                self.append(drawn)

    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Row i becomes a copy of the old row ``rows[i]``; there may be more or fewer rows than before."""
        rows = rows.to(self._ids.device)
        cached = torch.cat([rows, rows + self.num_rows]) if self.sampling.guided else rows
        self._cache.reorder(cached)
        if self._hidden is not None:
            self._hidden = self._hidden[cached]
        self._ids, self._log_probs = self._ids[rows], self._log_probs[:, rows]
        self.num_rows = len(rows)

    def branch(self, num: int) -> None:
        """Every row ``num`` times, copies of a row side by side."""
        if num != 1:
            self.select(torch.arange(self.num_rows).repeat_interleave(num))

    def copy(self) -> Rollout:
        """An independent rollout of the same rows."""
        other = object.__new__(Rollout)
        other.__dict__.update(self.__dict__)
        other._cache = self._cache.copy()
        other._ids, other._log_probs = self._ids.clone(), self._log_probs.clone()
        other._hidden = None if self._hidden is None else self._hidden.clone()
        return other

    @torch.no_grad()
    def append(self, drawn: Drawn) -> None:
        """Every row goes on with this token [B]."""
        self._ids[:, self.length] = drawn.indices
        self._log_probs[0, :, self.length] = drawn.log_probs
        self._log_probs[1, :, self.length] = drawn.draw_log_probs
        self.length += 1
        self._hidden = None  # read when a further token is wanted, so the last one never is
        if self.length == self._num_given + 1:
            given = self._doubled(self._ids[:, : self._num_given])
            with evaluating(self.model):
                self.token_forwards += len(given) * self.model.after_first_draw(given, self._cache)

    def _split(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """The conditional states, and those under the null condition where there are."""
        return hidden[: self.num_rows], hidden[self.num_rows :] if self.sampling.guided else None

    def _next_hidden(self) -> Tensor:
        if self._hidden is None:
            last = self._ids[:, self.length - 1 : self.length]
            self._hidden = self._read(last, self.length - 1)[:, -1]
        return self._hidden

    def _read(self, ids: Tensor, start: int) -> Tensor:
        ids = self._doubled(ids)
        self.token_forwards += ids.numel()
        return self.model.read_tokens(ids, start, self._cache)

    def _doubled(self, ids: Tensor) -> Tensor:
        """For both halves of guidance, which read the same tokens, in one batched pass."""
        return torch.cat([ids, ids]) if self.sampling.guided else ids

    def _start_from(self, prefix: Tensor) -> None:
        """All but the last prefix token is read here; the last one when a further token is wanted."""
        with torch.no_grad(), evaluating(self.model):
            self._ids[:, : prefix.shape[1]] = prefix
            states = self._hidden[:, None]
            if prefix.shape[1] > 1:
                states = torch.cat([states, self._read(prefix[:, :-1], 0)], dim=1)
            self._log_probs[0, :, : prefix.shape[1]] = self.model.score_tokens(states[: self.num_rows], prefix)
        self.length = self._num_given = prefix.shape[1]
        self._hidden = None
