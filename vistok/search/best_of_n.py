"""Best-of-N: draw N candidates for each condition, keep the one the verifier likes best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vistok.errors import ConfigError, VistokError
from vistok.generate.pairing import check_length
from vistok.search.context import SearchContext
from vistok.search.method import Found, SearchMethod
from vistok.search.prior import candidate_seed, token_data
from vistok.search.result import SearchStep, best_first
from vistok.seeds import stable_seed
from vistok.tokens import Tokens


@dataclass(frozen=True)
class BestOfNConfig(SearchMethod):
    """Draw N whole candidates, keep the best; works with every generator.

    Attributes:
        n_samples: N, for each image. Candidates are nested: those of a larger N contain those of a smaller one.
        sample: draw them; else all are the most likely tokens.
        own_noise: a decoder that draws noise gets other numbers for each candidate, as in the official
            search; else all candidates of an image share them, and the scores compare tokens alone.
    """

    name: ClassVar[str] = "best_of_n"

    n_samples: int = 50
    sample: bool = True
    own_noise: bool = False

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples is 1 or more candidates, got {self.n_samples}")

    def for_budget(self, budget: int, *, length: int, start: int = 0, rows: int = 1) -> BestOfNConfig:
        """N = ``budget``."""
        if budget < 1:
            raise VistokError(f"a budget is 1 or more candidates, got {budget}")
        return replace(self, n_samples=budget)

    def check(self, context: SearchContext) -> None:
        if context.num_results > self.n_samples:
            raise VistokError(f"num_results is 1 to budget={self.n_samples}, got {context.num_results}")
        if context.prefix is not None:
            raise VistokError("best_of_n draws whole candidates and cannot go on from a prefix; beam can")
        if context.tokenizer is not None and context.fill is None:
            check_length(context.tokenizer, context.length)

    def images_together(self, context: SearchContext) -> int:
        return len(context.conditions)

    def search(self, context: SearchContext) -> Found:
        """Candidates are drawn in blocks of up to ``batch_size`` rows: whole images where they fit, else parts of one."""
        count, num = len(context.conditions), self.n_samples
        width = min(num, context.batch_size)  # candidates a block
        height = max(1, context.batch_size // width)  # images a block
        measures: list[Tensor] = []
        parts: list[Tokens] = []
        order: list[int] = []
        for top in range(0, count, height):
            owners = range(top, min(top + height, count))
            for left in range(0, num, width):
                columns = range(left, min(left + width, num))
                places = [(owner, column) for owner in owners for column in columns]
                seeds = [candidate_seed(context.seeds[owner], column) for owner, column in places]
                tokens, log_probs = context.generate(owners, len(columns), seeds, sample=self.sample)
                noise = self._noise(context, places)
                measures.append(
                    context.measure([owner for owner, _ in places], token_data(tokens), log_probs, noise_seeds=noise)
                )
                parts.append(tokens)
                order += [owner * num + column for owner, column in places]
        back = torch.tensor(order).argsort()
        tokens = Tokens.cat(parts)[back]
        scores = context.combine(torch.cat(measures)[back].unflatten(0, (count, num)))
        kept = best_first(scores)[:, : context.num_results]
        winners = [(owner, column) for owner, columns in enumerate(kept.tolist()) for column in columns]
        return Found(
            ids=token_data(tokens).unflatten(0, (count, num))[torch.arange(count)[:, None], kept],
            scores=scores.gather(1, kept),
            history=(SearchStep(tokens=tokens, scores=scores, kept=kept),),
            noise_seeds=self._noise(context, winners),
        )

    def _noise(self, context: SearchContext, places: list[tuple[int, int]]) -> tuple[int, ...] | None:
        if not self.own_noise:
            return None
        return tuple(stable_seed(context.seeds[owner], "decode", column) for owner, column in places)
