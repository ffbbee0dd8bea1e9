"""What a search method is: a frozen configuration that can search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vistok.search.context import SearchContext
from vistok.search.result import SearchStep


@dataclass(frozen=True)
class Found:
    """What a method found, of B images.

    Attributes:
        ids: int64 [B, r, t], or latents [B, r, t, C]: the winners of each image, best first but where the method says otherwise.
        scores: float64 [B, r].
        history: the rounds.
        shown: int64 [B, r, u], the rows whose images are shown, where these are not ``ids``.
        noise_seeds: B * r, of what decoding draws; None is each image's own.
    """

    ids: Tensor
    scores: Tensor
    history: tuple[SearchStep, ...]
    shown: Tensor | None = None
    noise_seeds: tuple[int, ...] | None = None


class SearchMethod(ABC):
    """A way to search. Subclasses are frozen dataclasses of its options.

    Attributes:
        name: among ``vistok.search.METHODS``.
    """

    name: ClassVar[str]

    @abstractmethod
    def for_budget(self, budget: int, *, length: int, start: int = 0, rows: int = 1) -> SearchMethod:
        """This method with at most ``budget`` candidates scored for each image.

        Args:
            budget: of candidates.
            length: tokens of a whole candidate.
            start: tokens there are at the beginning.
            rows: rows an image has at the beginning.
        Raises:
            VistokError: a budget of no candidate.
        """

    @abstractmethod
    def check(self, context: SearchContext) -> None:
        """Raise a ``VistokError`` where this method cannot work with these models, before any work is done."""

    @abstractmethod
    def images_together(self, context: SearchContext) -> int:
        """How many images are searched for at once."""

    @abstractmethod
    def search(self, context: SearchContext) -> Found:
        """Search for all images of the context."""
