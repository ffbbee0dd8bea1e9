"""The contract of verifiers: what a search asks which candidate is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.tokens import Tokens


class Verifier(ABC):
    """Scores candidates; a higher score is better.

    Attributes:
        name: recorded in results.
        needs_images: whether candidates must be decoded for it.
        scores_draws: whether ``log_probs`` are to be those under the guided, tempered and filtered distribution that tokens were
            drawn from, and not the model's own; None where it reads none.
        relative: whether a score depends on the other candidates that it is compared with. Searches then
            ``measure`` candidates in any order and batches, and ``combine`` the measures of each image's.
    """

    name: str
    needs_images: bool = True
    relative: bool = False
    scores_draws: bool | None = None

    def settings(self) -> dict[str, Any]:
        """What scores depend on beside the name, as JSON's values: it is recorded, and searches that are resumed must have the same."""
        return {}

    @abstractmethod
    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """Score N candidates.

        Args:
            images: float RGB in [0, 1], [N, 3, H, W]; None if ``needs_images`` is False.
            condition: one for each candidate.
            tokens: the candidates, N rows.
            log_probs: the generator's log-probability of every token, [N, L], where it gives them.
            num_new: how many of the tokens are of the last step; None where there are no steps.
        Returns:
            Finite scores [N].
        """

    def measure(self, images: Tensor | None, condition: list[Any], **facts: Any) -> Tensor:
        """What is found out about each candidate by itself, [N, k]; arguments as of a call."""
        return torch.as_tensor(self(images, condition, **facts))[:, None]

    def combine(self, measures: Tensor) -> Tensor:
        """Scores [n] of the candidates of one image out of their measures [n, k]."""
        return measures[:, 0]


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
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``."""
        return check_scores(self.function(images, condition), len(condition), self.name)


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
