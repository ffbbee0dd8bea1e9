"""The generator's own likelihood as a verifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.generate.base import Generator
from vistok.search.verifiers.base import Verifier
from vistok.tokens import Tokens


class LikelihoodVerifier(Verifier):
    """The generator's own log-likelihood of all tokens under the condition, in nats.

    The model's distribution itself, whatever guidance, temperature and filters the candidates were drawn with; unless ``as_shipped``.

    Args:
        generator: reads tokens that come without log-probabilities; None where there is none.
        as_shipped: what the official search scores: the distribution that tokens were drawn from, of the last step's tokens alone,
            but divided by the number of all; not divided in best-of-N, which has no steps; 0 without log-probabilities, as of
            rows that are completed after the search.
    """

    needs_images = False

    def __init__(self, generator: Generator | None = None, *, as_shipped: bool = False) -> None:
        self.generator, self.as_shipped = generator, as_shipped
        self.scores_draws = as_shipped
        self.name = "likelihood_as_shipped" if as_shipped else "likelihood"

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``; without ``log_probs`` the tokens are read once more."""
        if self.as_shipped:
            if log_probs is None:
                return torch.zeros(len(condition), dtype=torch.float64)
            log_probs = log_probs.cpu().double()
            if num_new is None:
                return log_probs.sum(dim=-1)
            return log_probs[:, log_probs.shape[1] - num_new :].sum(dim=-1) / log_probs.shape[1]
        if log_probs is None:
            if self.generator is None:
                raise VistokError("the likelihood verifier asks a generator, and this search has none; take another")
            log_probs = self.generator.token_log_probs(tokens, condition)
        # To a ten-thousandth: sums of fp32 numbers differ in later digits between batches of different
        # sizes, and equal candidates are to tie wherever they were drawn.
        return log_probs.cpu().double().sum(dim=-1).round(decimals=4)
