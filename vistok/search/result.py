"""What a search gives back: the winners, everything that was tried, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.tokens import Tokens


@dataclass
class Cost:
    """What a search did.

    Attributes:
        token_forwards: positions that went through the generator, counted row by row; guidance counts twice.
        decoder_passes: images decoded.
        decoder_forwards: passes of the decoder, as if each image was decoded by itself: one, but of a flow one a step, and two with guidance.
        verifier_calls: candidates that the verifier was asked about.
        seconds: wall-clock time.
    """

    token_forwards: int = 0
    decoder_passes: int = 0
    decoder_forwards: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """The cost of both."""
        return Cost(
            self.token_forwards + other.token_forwards,
            self.decoder_passes + other.decoder_passes,
            self.decoder_forwards + other.decoder_forwards,
            self.verifier_calls + other.verifier_calls,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class SearchStep:
    """One round: candidates and their scores.

    Attributes:
        tokens: B * N candidates, those of one condition side by side.
        scores: float64 [B, N].
        kept: int64 [B, K]: which candidates of each condition were kept, best first.
        parents: int64 [B, N]: the row kept in the round before that each candidate goes on from; None in the first.
    """

    tokens: Tokens
    scores: Tensor
    kept: Tensor
    parents: Tensor | None = None

    def best_of(self, budget: int) -> Tensor:
        """The best among the first ``budget`` candidates of each condition: rows of ``tokens``, int64 [B].

        With candidates that are nested in the budget, as best-of-N's are, this is the winner of a search
        of that budget: one search gives the whole curve of score against budget.
        """
        rows, candidates = self.scores.shape
        if not 1 <= budget <= candidates:
            raise VistokError(f"there are {candidates} candidates a condition, got budget={budget}")
        return best_first(self.scores[:, :budget])[:, 0] + torch.arange(rows) * candidates


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        tokens: the best of each condition, or ``num_results`` of them side by side (fewer where the last round has
            fewer candidates), best first; of lookahead, as they were continued.
        images: [B, 3, H, W] of ``tokens``; None where no tokenizer was given or ``decode=False``.
        scores: float64 [B], the verifier's for ``tokens`` (of lookahead by a verifier without images: for the
            tokens before they were continued).
        history: the rounds, in order.
        cost: exact counts.
        method: its name.
        verifier: its name.
    """

    tokens: Tokens
    images: Tensor | None
    scores: Tensor
    history: tuple[SearchStep, ...]
    cost: Cost = field(default_factory=Cost)
    method: str = ""
    verifier: str = ""

    def best_at(self, step: int, image: int = 0) -> Tokens:
        """The best candidate of an image after a round, one row; -1 is the last round."""
        round_, count = self.history[step], self.history[step].scores.shape[1]
        return round_.tokens[image * count + int(best_first(round_.scores)[image, 0])]


def best_first(scores: Tensor) -> Tensor:
    """Indices that sort the last axis, highest first; equal scores keep their order, so ties go to the lowest index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices
