"""Verifiers: what scores candidates, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.generate import Generator


class Verifier(Protocol):
    """Scores candidates.

    Attributes:
        needs_images: whether candidates must be decoded for it.
    """

    needs_images: bool

    def __call__(self, images: Tensor | None, condition: Sequence[Any], tokens: Tokens) -> Tensor:
        """Scores [N] of N candidates: images [N, 3, H, W] in [0, 1] (None if not needed), one condition each."""


class Likelihood:
    """The generator's own log-likelihood of the tokens under the condition: no decoding."""

    needs_images = False

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(self, images: Tensor | None, condition: Sequence[Any], tokens: Tokens) -> Tensor:
        return self.generator.log_prob(tokens, list(condition)).cpu()


class _Function:
    """A plain function (images, condition) -> scores [N] as a verifier."""

    needs_images = True

    def __init__(self, function: Callable[[Tensor, Sequence[Any]], Tensor]) -> None:
        self.function = function

    def __call__(self, images: Tensor | None, condition: Sequence[Any], tokens: Tokens) -> Tensor:
        return self.function(images, condition)


def make_verifier(verifier: str | Callable[..., Tensor], generator: Generator) -> Verifier:
    """A verifier from its name (``likelihood``), an object, or a function of images and conditions."""
    if isinstance(verifier, str):
        if verifier != "likelihood":
            raise VistokError(f"there is no verifier {verifier!r}; {nearest(verifier, ['likelihood'])}")
        return Likelihood(generator)
    if not callable(verifier):
        raise VistokError(f"a verifier is a name or a function of (images, condition), got {type(verifier).__name__}")
    return verifier if hasattr(verifier, "needs_images") else _Function(verifier)
