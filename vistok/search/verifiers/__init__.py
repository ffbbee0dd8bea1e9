"""Verifiers: what a search asks which candidate is better. One protocol: ``(images, condition) -> scores [N]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.search.verifiers.base import FunctionVerifier, Verifier, check_scores
from vistok.search.verifiers.ensemble import Ensemble, aggregate
from vistok.search.verifiers.likelihood import LikelihoodVerifier

__all__ = [
    "VERIFIERS",
    "Ensemble",
    "FunctionVerifier",
    "LikelihoodVerifier",
    "Verifier",
    "aggregate",
    "as_verifier",
    "check_scores",
]


def _likelihood_as_shipped(generator: Generator | None) -> Verifier:
    return LikelihoodVerifier(generator, as_shipped=True)


VERIFIERS: dict[str, Callable[[Generator | None], Verifier]] = {
    "likelihood": LikelihoodVerifier,
    "likelihood_as_shipped": _likelihood_as_shipped,
}


def as_verifier(
    verifier: str | Verifier | Callable[[Tensor, list[Any]], Tensor], generator: Generator | None = None
) -> Verifier:
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
