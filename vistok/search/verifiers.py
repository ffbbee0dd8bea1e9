"""Verifiers: what a search asks which candidate is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.tokens import Tokens


class Verifier(ABC):
    """Scores candidates; a higher score is better.

    Attributes:
        name: recorded in results.
        needs_images: whether candidates must be decoded for it.
    """

    name: str
    needs_images: bool = True

    @abstractmethod
    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
    ) -> Tensor:
        """Score N candidates.

        Args:
            images: float RGB in [0, 1], [N, 3, H, W]; None if ``needs_images`` is False.
            condition: one for each candidate.
            tokens: the candidates, N rows.
            log_probs: the generator's log-probability of every token, [N, L], where it gives them.
        Returns:
            Finite scores [N].
        """


class LikelihoodVerifier(Verifier):
    """The generator's own log-likelihood of all tokens under the condition, in nats.

    The model's distribution itself, whatever guidance, temperature and filters the candidates were drawn with.
    """

    name = "likelihood"
    needs_images = False

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
    ) -> Tensor:
        """See ``Verifier``; without ``log_probs`` the tokens are read once more."""
        if log_probs is None:
            log_probs = self.generator.token_log_probs(tokens, condition)
        # To a ten-thousandth: sums of fp32 numbers differ in later digits between batches of different
        # sizes, and equal candidates are to tie wherever they were drawn.
        return log_probs.cpu().double().sum(dim=-1).round(decimals=4)


class FunctionVerifier(Verifier):
    """Any function of (images, condition) -> scores [N]."""

    def __init__(self, function: Callable[[Tensor, list[Any]], Tensor]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
    ) -> Tensor:
        """See ``Verifier``."""
        return self.function(images, condition)


VERIFIERS: dict[str, Callable[[Generator], Verifier]] = {"likelihood": LikelihoodVerifier}


def as_verifier(verifier: str | Verifier | Callable[[Tensor, list[Any]], Tensor], generator: Generator) -> Verifier:
    """A verifier from a name, a ``Verifier``, or a function of (images, condition).

    Raises:
        VistokError: unknown name, or something that cannot be called.
    """
    if isinstance(verifier, Verifier):
        return verifier
    if isinstance(verifier, str):
        if verifier not in VERIFIERS:
            raise VistokError(f"there is no verifier named {verifier!r}; {nearest(verifier, VERIFIERS)}")
        return VERIFIERS[verifier](generator)
    if not callable(verifier):
        raise VistokError(
            f"a verifier is a name ({', '.join(sorted(VERIFIERS))}), a Verifier, or a function of (images, condition); "
            f"got {verifier!r}"
        )
    return FunctionVerifier(verifier)


def check_scores(scores: Any, count: int, name: str) -> Tensor:
    """A verifier's answer as float64 [N] on the CPU.

    Raises:
        VistokError: not one finite number for each of ``count`` candidates.
    """
    scores = torch.as_tensor(scores).detach().to("cpu", torch.float64)
    if scores.shape != (count,) or not bool(scores.isfinite().all()):
        raise VistokError(
            f"the verifier {name} gives one finite score for each of {count} candidates; "
            f"got {list(scores.shape)}, {int(scores.isfinite().sum())} of them finite"
        )
    return scores
