"""Beam search over ordered tokens: branch, decode the prefixes, keep what the verifier likes best, go on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vistok.errors import ConfigError, VistokError
from vistok.search.context import SearchContext
from vistok.search.method import Found, SearchMethod
from vistok.search.prior import GeneratorPrior, Rows
from vistok.search.result import SearchStep, best_first
from vistok.search.schedule import token_schedule


@dataclass(frozen=True)
class BeamConfig(SearchMethod):
    """Rows grow by a schedule of lengths; in every step each kept row branches, and the best of all branches are kept.

    Only a step's own scores count, and a row may have several survivors or none. Scores that are equal are
    ordered as they were drawn.

    Attributes:
        beam_width: K rows that are kept.
        candidates_per_beam: M branches of a row.
        max_steps: of the schedule; ignored where it is given as lengths.
        token_schedule: ``geometric``, ``linear``, ``fixed``, or the lengths; see ``vistok.search.schedule``.
        tokens_per_step: of ``linear``.
        geometric_base: of ``geometric``.
        sample: draw tokens; else take the most likely ones, and branch to the M most likely.
        replacement: whether the drawn branches of a row may be equal.
        branch_at: ``last`` (branches share all of a step's tokens but its last, as in the official search,
            so that a step costs as much as one row) or ``step`` (they differ from its first token on).
        scale_first_step: while there are fewer rows than ``beam_width``, each has beam_width // rows times M branches.
        complete_after_search: draw the most likely tokens to the full length after the search, and score again.
        sort_completed: order the completed rows by their new scores; the official search leaves them as they were.
        repeat_entries: a schedule's entry that adds no token is a step too, as in the official search: rows are
            only copied, and the beam fills with copies of the best. Else such an entry is skipped.
    """

    name: ClassVar[str] = "beam"

    beam_width: int = 5
    candidates_per_beam: int = 10
    max_steps: int = 9
    token_schedule: str | tuple[int, ...] = "geometric"
    tokens_per_step: int = 32
    geometric_base: float = 2.0
    sample: bool = True
    replacement: bool = False
    branch_at: Literal["last", "step"] = "last"
    scale_first_step: bool = False
    complete_after_search: bool = False
    sort_completed: bool = True
    repeat_entries: bool = False

    def __post_init__(self) -> None:
        if min(self.beam_width, self.candidates_per_beam, self.max_steps, self.tokens_per_step) < 1:
            raise ConfigError("beam_width, candidates_per_beam, max_steps and tokens_per_step are 1 or more")
        if self.geometric_base < 1:
            raise ConfigError(f"geometric_base is 1 or more, got {self.geometric_base}")
        if self.branch_at not in ("last", "step"):
            raise ConfigError(f"rows branch at the 'last' token or over the whole 'step', got {self.branch_at!r}")
        if not isinstance(self.token_schedule, str):
            object.__setattr__(self, "token_schedule", tuple(self.token_schedule))
        self.lengths(1)  # an error where they make no sense

    def lengths(self, max_tokens: int, start: int = 0) -> tuple[int, ...]:
        """The rows' lengths after each step, repeated entries among them."""
        return token_schedule(
            self.token_schedule,
            max_steps=self.max_steps,
            max_tokens=max_tokens,
            start=start,
            base=self.geometric_base,
            tokens_per_step=self.tokens_per_step,
        )

    @property
    def _num_steps(self) -> int:
        return self.max_steps if isinstance(self.token_schedule, str) else len(self.token_schedule)

    def branches(self, rows: int) -> int:
        """How many branches each of an image's rows has."""
        scale = self.beam_width // rows if self.scale_first_step and rows < self.beam_width else 1
        return self.candidates_per_beam * scale

    def num_candidates(self, max_tokens: int, start: int = 0, rows: int = 1) -> int:
        """How many candidates the steps score for an image; completed rows not counted."""
        total, length = 0, start
        for wanted in self.lengths(max_tokens, start):
            if wanted > length or self.repeat_entries:
                found = rows * self.branches(rows)
                total, rows, length = total + found, min(self.beam_width, found), wanted
        return total

    def for_budget(self, budget: int, *, length: int, start: int = 0, rows: int = 1) -> BeamConfig:
        """As many branches a row as the budget has room for.

        Where it has no room for two, the schedule gets shorter, for rows that never branch are no search: its first
        lengths stay, which decide most, and the last.
        """
        if budget < 1:
            raise VistokError(f"a budget is 1 or more candidates, got {budget}")
        steps = sorted({wanted - start for wanted in self.lengths(length, start)})
        method = self
        while len(steps) > 1 and method._with(2).num_candidates(length, start, rows) > budget:
            steps = [*steps[:-2], steps[-1]]
            method = replace(self, token_schedule=tuple(steps))
        low, high = 1, budget
        while low < high:
            middle = (low + high + 1) // 2
            fits = method._with(middle).num_candidates(length, start, rows) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return method._with(low)

    def _with(self, candidates: int) -> BeamConfig:
        return replace(self, candidates_per_beam=candidates)

    def check(self, context: SearchContext) -> None:
        start = 0 if context.prefix is None else context.prefix.shape[1]
        if max(self.lengths(context.length, start)) <= start and not self.repeat_entries:
            raise VistokError(f"the rows begin with {start} of {context.length} tokens: no step is left to search")
        tokenizer, prior = context.tokenizer, context.prior
        if isinstance(prior, GeneratorPrior) and not prior.generator.autoregressive:
            raise VistokError(
                f"{prior.generator.name or prior.generator.family} does not write tokens in order, so there is "
                "nothing to branch; method='best_of_n' works with it"
            )
        shortest = min(self.scored_length(step, length, context) for step, length in self._steps(context))
        last = self.lengths(context.length, start)[-1]
        final = context.length if self.complete_after_search else self.scored_length(self._num_steps, last, context)
        if context.verifier.needs_images:
            self._check_decodable(context, shortest)
        if tokenizer is not None:
            self._check_decodable(context, final)

    def scored_length(self, step: int, length: int, context: SearchContext) -> int:
        """How many tokens the verifier sees of rows that have ``length`` after a step."""
        return length

    def extended(self, rows: Rows, step: int, context: SearchContext) -> Tensor:
        """The ids that are decoded for the rows of a step, [N, u]."""
        return rows.ids

    def images_together(self, context: SearchContext) -> int:
        return max(1, context.batch_size // self.beam_width)

    def search(self, context: SearchContext) -> Found:
        count = len(context.conditions)
        rows = context.start()
        history: list[SearchStep] = []
        each = len(rows.ids) // count  # rows of an image
        for step, length in self._steps(context):
            if history:
                rows.select(flat_rows(history[-1].kept, each))
                each = history[-1].kept.shape[1]
            context.forget()
            branches = self.branches(each)
            num_new = length - rows.ids.shape[1]
            rows.draw(
                num_new,
                branches,
                sample=self.sample,
                replacement=self.replacement,
                whole_step=self.branch_at == "step",
            )
            parents = torch.arange(each).repeat_interleave(branches).expand(count, -1)
            each *= branches
            ids = rows.ids
            seen = self.extended(rows, step, context) if context.verifier.needs_images else ids
            scores = self._score(context, seen, rows.log_probs, drawn=ids.shape[1], num_new=num_new)
            kept = best_first(scores)[:, : self.beam_width]
            history.append(
                SearchStep(
                    tokens=context.prior.tokens(ids),
                    scores=scores,
                    kept=kept,
                    parents=parents if len(history) else None,
                )
            )
        return self._finish(context, rows, history, each)

    def _steps(self, context: SearchContext) -> list[tuple[int, int]]:
        """The steps that are done, by their number in the schedule, and the lengths after them."""
        length = 0 if context.prefix is None else context.prefix.shape[1]
        out = []
        for step, wanted in enumerate(self.lengths(context.length, length)):
            if wanted > length or self.repeat_entries:
                out.append((step, wanted))
                length = wanted
        return out

    @staticmethod
    def _score(
        context: SearchContext, seen: Tensor, log_probs: Tensor | None, *, drawn: int, num_new: int | None
    ) -> Tensor:
        """The scores [B, n] of candidates [B * n, u], of which the first ``drawn`` tokens are in the beam."""
        count = len(context.conditions)
        each = len(seen) // count
        owners = [owner for owner in range(count) for _ in range(each)]
        measures = context.measure(owners, seen, log_probs, drawn=drawn, num_new=num_new)
        return context.combine(measures.unflatten(0, (count, each)))

    def _finish(self, context: SearchContext, rows: Rows, history: list[SearchStep], each: int) -> Found:
        count, last = len(context.conditions), history[-1]
        shown = best_first(last.scores)[:, : context.num_results]
        scores = last.scores.gather(1, shown)
        rows.select(flat_rows(shown, each))
        if self.complete_after_search and rows.ids.shape[1] < context.length:
            rows.draw(context.length - rows.ids.shape[1], sample=False)
            context.forget()
            # The official search has no log-probabilities of what it completes.
            log_probs = None if context.verifier.scores_draws else rows.log_probs
            scores = self._score(context, rows.ids, log_probs, drawn=context.length, num_new=None)
            ids = rows.ids.unflatten(0, (count, -1))
            if self.sort_completed:
                order = best_first(scores)
                scores, ids = scores.gather(1, order), ids.gather(1, order[..., None].expand_as(ids))
            return Found(ids=ids, scores=scores, history=tuple(history))
        ids = rows.ids.unflatten(0, (count, -1))
        final = self.extended(rows, self._num_steps, context).unflatten(0, (count, -1))
        return Found(ids=ids, scores=scores, history=tuple(history), shown=final)

    @staticmethod
    def _check_decodable(context: SearchContext, length: int) -> None:
        tokenizer = context.tokenizer
        if length < tokenizer.num_tokens and not (tokenizer.ordered or tokenizer.adaptive) and context.fill is None:
            raise VistokError(
                f"{tokenizer.name or tokenizer.family} decodes {tokenizer.num_tokens} tokens and no fewer, and this "
                f"search decodes {length}; take lookahead to the end with complete_after_search, best_of_n, or give fill="
            )


def flat_rows(kept: Tensor, each: int) -> Tensor:
    """Numbers [B, k] among each image's ``each`` rows -> rows of all, int64 [B * k]."""
    return (kept + torch.arange(len(kept))[:, None] * each).flatten()
