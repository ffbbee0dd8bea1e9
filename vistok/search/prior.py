"""Where a search's candidates come from: rows of tokens under way, drawn in steps, selected and branched.

Searches see a ``Prior`` and its ``Rows`` only. Here are those of generators, whose past is computed
once and shared, and the uniform prior, which knows nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.generate.autoregressive import AutoregressiveGenerator, Rollout
from vistok.generate.base import Generator
from vistok.generate.sampling import Drawn, row_noise
from vistok.search.result import Cost
from vistok.seeds import stable_seed
from vistok.tokens import Tokens, codebook_product


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a condition's candidate; the first has the condition's own, and so is plain sampling.

    It does not depend on how many there are: the candidates of a larger search contain those of a
    smaller one, so a larger budget of best-of-N never ends with a lower score.
    """
    return seed if candidate == 0 else stable_seed(seed, candidate)


def token_data(tokens: Tokens) -> Tensor:
    """Ids [N, t], or latents [N, t, C]."""
    return tokens.latents if tokens.is_continuous else tokens.ids


class Rows(ABC):
    """Unfinished candidates of B images, those of an image side by side, all of one length t."""

    @property
    @abstractmethod
    def ids(self) -> Tensor:
        """int64 [N, t], on the CPU."""

    @property
    @abstractmethod
    def log_probs(self) -> Tensor | None:
        """Of every token under the model's conditional distribution, [N, t]; None where the prior has none."""

    @abstractmethod
    def draw(
        self,
        num_new: int,
        branches: int = 1,
        *,
        sample: bool = True,
        replacement: bool = False,
        whole_step: bool = False,
    ) -> None:
        """Every row goes on by ``num_new`` tokens, and becomes ``branches`` rows side by side.

        Args:
            num_new: 0 or more; with 0 a row is only repeated.
            branches: M rows for each.
            sample: draw; else take the most likely tokens, and the M most likely ones where rows branch.
            replacement: whether branches of a row may be equal.
            whole_step: branch at the first new token, so that the others differ too; else at the last one,
                and the branches share what is before it.
        """

    @abstractmethod
    def select(self, index: Tensor) -> None:
        """Row i becomes the old row ``index[i]``; there may be more or fewer rows than before."""

    @abstractmethod
    def copy(self) -> Rows:
        """The same rows, to be changed without changing these; so is what they draw from."""


class Prior(ABC):
    """A distribution over rows of tokens under conditions.

    Attributes:
        num_tokens: the largest length.
        codebook_size: as tokenizers state it.
    """

    num_tokens: int
    codebook_size: int | tuple[int, ...] | None

    @abstractmethod
    def check(self, conditions: Sequence[Any]) -> None:
        """Raise a ``VistokError`` if a condition is unknown."""

    @abstractmethod
    def start(self, conditions: Sequence[Any], seeds: Sequence[int], prefix: Tensor | None, cost: Cost) -> Rows:
        """Rows to go on from: one empty row for each of B conditions, or R rows for each, given as ids [B * R, t].

        Args:
            conditions, seeds: B.
            prefix: the beginning.
            cost: where the work is counted.
        """

    @abstractmethod
    def generate(
        self, conditions: Sequence[Any], num: int, seeds: Sequence[int], length: int, cost: Cost, *, sample: bool = True
    ) -> tuple[Tokens, Tensor | None]:
        """``num`` whole rows for each condition, side by side, one seed a row; and log-probabilities [N, L]."""

    @abstractmethod
    def tokens(self, data: Tensor) -> Tokens:
        """Ids [N, t], or latents [N, t, C], as ``Tokens`` of this prior's tokenizer."""


class GeneratorPrior(Prior):
    """A generator's tokens.

    Args:
        generator: any for whole rows; one that writes tokens in order for rows under way.
        sampling: differences from its defaults.
        conditional: give it the conditions; else it draws without them, and only the verifier sees them.
        scores_draws: see ``Verifier``: which log-probabilities are told.
    Raises:
        VistokError: it is to draw without a condition, and cannot.
    """

    def __init__(
        self,
        generator: Generator,
        sampling: Mapping[str, Any] | None = None,
        *,
        conditional: bool = True,
        scores_draws: bool = False,
    ) -> None:
        options = dict(sampling or {})
        if not conditional:
            if generator.conditional and not generator.guidable:
                raise VistokError(
                    f"{generator.name or generator.family} was never trained without its condition, so it cannot draw "
                    "without; search with method='beam', or over 'uniform'"
                )
            options["cfg_scale"] = 1.0  # there is nothing to be guided to
        self.generator, self.conditional, self.scores_draws = generator, conditional, scores_draws
        self.options, self.sampling = options, generator.sampling.updated(**options)
        self.num_tokens, self.codebook_size = generator.num_tokens, generator.codebook_size

    def check(self, conditions: Sequence[Any]) -> None:
        if not self.conditional:
            return
        if any(isinstance(entry, Tensor) and entry.ndim == 3 for entry in conditions):
            raise VistokError(
                f"{self.generator.name or self.generator.family} does not read images. To search for tokens of an image, let "
                "only the verifier see it: method='ar_free', or 'uniform' in place of the generator; or give the generator "
                "its own condition and the image as the verifier's reference: SimilarityVerifier('lite0', image)"
            )
        self.generator.encode_condition(list(conditions))

    def start(self, conditions: Sequence[Any], seeds: Sequence[int], prefix: Tensor | None, cost: Cost) -> Rows:
        generator = self.generator
        if not isinstance(generator, AutoregressiveGenerator):
            raise VistokError(
                f"{generator.name or generator.family} does not write tokens in order, so there is nothing to "
                "branch; method='best_of_n' works with it"
            )
        given = self._given(conditions)
        if prefix is not None:
            given = [entry for entry in given for _ in range(len(prefix) // len(given))]
        tokens = None if prefix is None else self.tokens(prefix)
        rollout = generator.start(given, sampling=self.sampling, prefix=tokens)
        return RolloutRows(rollout, seeds, cost, scores_draws=self.scores_draws)

    def generate(
        self, conditions: Sequence[Any], num: int, seeds: Sequence[int], length: int, cost: Cost, *, sample: bool = True
    ) -> tuple[Tokens, Tensor | None]:
        options = self.options if sample else {**self.options, "temperature": 0.0}
        result = self.generator.generate(
            self._given(conditions), num, length=length, seeds=seeds, return_log_probs=True, **options
        )
        cost.token_forwards += result.token_forwards
        log_probs = result.draw_log_probs if self.scores_draws else result.log_probs
        return result.tokens.to("cpu"), None if log_probs is None else log_probs.cpu()

    def tokens(self, data: Tensor) -> Tokens:
        return self.generator.as_tokens(data)

    def _given(self, conditions: Sequence[Any]) -> list[Any]:
        return list(conditions) if self.conditional else [None] * len(conditions)


class RolloutRows(Rows):
    """Rows of a rollout. Branches share it until they go on: a candidate is its parent's row and one token.

    So the cache is never copied for candidates that are dropped, and no prefix is read twice.

    Args:
        rollout: the rows; they become this object's own.
        seeds: B, one an image. Row r of an image draws its numbers from ``candidate_seed(seed, r)``: the
            first row from the image's own seed, token for token as ``generate`` does.
        cost: where the work is counted.
        scores_draws: see ``Verifier``.
    """

    def __init__(self, rollout: Rollout, seeds: Sequence[int], cost: Cost, *, scores_draws: bool = False) -> None:
        self._rollout, self._seeds, self._cost, self._scores_draws = rollout, list(seeds), cost, scores_draws
        self._sampling = rollout.sampling
        self._parents: Tensor | None = None  # [N]: rows of the rollout; None are its rows themselves
        self._last: Drawn | None = None  # [N]: the tokens that come after those rows
        self._noise: dict[int, Tensor] = {}
        self._counted = 0
        self._count()

    @property
    def ids(self) -> Tensor:
        return self._with_last(self._rollout.ids.cpu(), None if self._last is None else self._last.indices)

    @property
    def log_probs(self) -> Tensor:
        name = "draw_log_probs" if self._scores_draws else "log_probs"
        last = None if self._last is None else getattr(self._last, name)
        return self._with_last(getattr(self._rollout, name).cpu(), last)

    def draw(
        self,
        num_new: int,
        branches: int = 1,
        *,
        sample: bool = True,
        replacement: bool = False,
        whole_step: bool = False,
    ) -> None:
        self._settle()
        rollout = self._rollout
        rollout.sampling = self._sampling if sample else self._sampling.updated(temperature=0.0)
        if num_new == 0:
            self._parents = torch.arange(rollout.num_rows).repeat_interleave(branches)
        elif branches == 1:
            rollout.extend(num_new, self._token_noise(sample))
        else:
            alone = 0 if whole_step else num_new - 1
            rollout.extend(alone, self._token_noise(sample))
            self._branch(branches, replacement=replacement)
            if alone + 1 < num_new:
                self._settle()
                rollout.extend(num_new - alone - 1, self._token_noise(sample))
        self._count()

    def select(self, index: Tensor) -> None:
        index = index.to("cpu")
        self._parents = index if self._parents is None else self._parents[index]
        if self._last is not None:
            at = index.to(self._last.indices.device)
            last = self._last
            self._last = Drawn(last.indices[at], last.log_probs[at], last.draw_log_probs[at])

    def copy(self) -> RolloutRows:
        other = object.__new__(RolloutRows)
        other.__dict__.update(self.__dict__)
        other._rollout = self._rollout.copy()
        return other

    def _branch(self, branches: int, *, replacement: bool) -> None:
        rollout, size = self._rollout, self._rollout.model.codebook_size
        possible = codebook_product(size)
        if branches > possible and (not replacement or rollout.sampling.greedy):
            raise VistokError(f"there are {possible} ids, so a row has no {branches} different branches; take fewer")
        drawn = rollout.draw_next(self._branch_noise(branches), replacement=replacement)
        self._parents = torch.arange(rollout.num_rows).repeat_interleave(branches)
        self._last = Drawn(drawn.indices.flatten(), drawn.log_probs.flatten(), drawn.draw_log_probs.flatten())

    def _settle(self) -> None:
        """The rollout gets these very rows."""
        if self._parents is not None:
            self._rollout.select(self._parents)
        if self._last is not None:
            self._rollout.append(self._last)
        self._parents = self._last = None

    def _with_last(self, values: Tensor, last: Tensor | None) -> Tensor:
        values = values if self._parents is None else values[self._parents]
        return values.clone() if last is None else torch.cat([values, last.cpu()[:, None].to(values.dtype)], dim=1)

    def _token_noise(self, sample: bool) -> Tensor:
        """Uniform numbers [N, num_tokens, D]; nothing reads them when the most likely tokens are taken."""
        model, rows = self._rollout.model, self._rollout.num_rows
        if not sample:
            return torch.zeros(1, 1, 1, device=model.device).expand(rows, model.num_tokens, model.draws_per_token)
        each = rows // len(self._seeds)
        missing = [row for row in range(each) if row not in self._noise]
        for row in missing:
            self._noise[row] = model.token_noise([candidate_seed(seed, row) for seed in self._seeds])
        return torch.stack([self._noise[row] for row in range(each)], dim=1).flatten(0, 1)

    def _branch_noise(self, branches: int) -> Tensor:
        """Uniform numbers [N, M, D]: the first branch has its row's own ones of this position."""
        rollout, model = self._rollout, self._rollout.model
        if rollout.sampling.greedy:
            return torch.zeros(rollout.num_rows, branches, model.draws_per_token, device=model.device)
        own = self._token_noise(True)[:, rollout.length, None]
        each = rollout.num_rows // len(self._seeds)
        seeds = [
            stable_seed(candidate_seed(seed, row), "branches", rollout.length)
            for seed in self._seeds
            for row in range(each)
        ]
        others = row_noise(seeds, (branches - 1, model.draws_per_token)).to(own)
        return torch.cat([own, others], dim=1)

    def _count(self) -> None:
        done = self._rollout.token_forwards
        self._cost.token_forwards += done - self._counted
        self._counted = done


class UniformPrior(Prior):
    """All rows of ids alike: search without any model of them.

    Args:
        codebook_size, num_tokens: of the tokenizer.
        family, model, weight_hash: of the tokenizer.
    """

    def __init__(
        self,
        codebook_size: int | tuple[int, ...],
        num_tokens: int,
        *,
        family: str = "",
        model: str = "",
        weight_hash: str = "",
    ) -> None:
        self.codebook_size, self.num_tokens = codebook_size, num_tokens
        self._names = {"family": family, "model": model, "weight_hash": weight_hash}

    def check(self, conditions: Sequence[Any]) -> None:
        """Any condition will do: only the verifier reads it."""

    def start(self, conditions: Sequence[Any], seeds: Sequence[int], prefix: Tensor | None, cost: Cost) -> Rows:
        ids = torch.zeros(len(conditions), 0, dtype=torch.int64) if prefix is None else prefix
        return UniformRows(ids, seeds, codebook_product(self.codebook_size))

    def generate(
        self, conditions: Sequence[Any], num: int, seeds: Sequence[int], length: int, cost: Cost, *, sample: bool = True
    ) -> tuple[Tokens, Tensor | None]:
        rows = [_uniform_ids(seed, 1, length, codebook_product(self.codebook_size)) for seed in seeds]
        return self.tokens(torch.cat(rows)), None

    def tokens(self, data: Tensor) -> Tokens:
        return Tokens(ids=data, codebook_size=self.codebook_size, **self._names)


class UniformRows(Rows):
    """Rows whose every new token is drawn by itself, so that branches share nothing; ``sample`` and ``replacement`` mean nothing.

    Args:
        ids: the beginnings [B * R, t].
        seeds: B, one an image.
        vocab_size: how many ids there are.
    """

    def __init__(self, ids: Tensor, seeds: Sequence[int], vocab_size: int) -> None:
        self._ids, self._seeds, self._vocab_size = ids.cpu(), list(seeds), vocab_size
        self._calls: tuple[int | str, ...] = ("uniform", 0)

    @property
    def ids(self) -> Tensor:
        return self._ids

    @property
    def log_probs(self) -> None:
        return None

    def draw(
        self,
        num_new: int,
        branches: int = 1,
        *,
        sample: bool = True,
        replacement: bool = False,
        whole_step: bool = False,
    ) -> None:
        each = len(self._ids) // len(self._seeds) * branches
        new = [_uniform_ids(stable_seed(seed, *self._calls), each, num_new, self._vocab_size) for seed in self._seeds]
        self._ids = torch.cat([self._ids.repeat_interleave(branches, 0), torch.cat(new)], dim=1)
        self._calls = (*self._calls[:-1], self._calls[-1] + 1)

    def select(self, index: Tensor) -> None:
        self._ids = self._ids[index.to("cpu")]

    def copy(self) -> UniformRows:
        other = UniformRows(self._ids, self._seeds, self._vocab_size)
        other._calls = (*self._calls, "copy", 0)
        return other


def _uniform_ids(seed: int, rows: int, length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
