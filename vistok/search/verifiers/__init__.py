"""Verifiers: what a search asks which candidate is better. One protocol: ``(images, condition) -> scores [N]``.

By name: those that need nothing but a generator. Others are made: ``SimilarityVerifier`` (a reference image),
``ClassifierVerifier`` (one's own classifier), ``Ensemble`` (several as one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.search.verifiers.base import FunctionVerifier, Verifier, check_scores
from vistok.search.verifiers.classifier import ClassifierVerifier, lite0_classifier
from vistok.search.verifiers.ensemble import Ensemble, aggregate
from vistok.search.verifiers.likelihood import LikelihoodVerifier
from vistok.search.verifiers.similarity import SimilarityVerifier

__all__ = [
    "VERIFIERS",
    "ClassifierVerifier",
    "Ensemble",
    "FunctionVerifier",
    "LikelihoodVerifier",
    "SimilarityVerifier",
    "Verifier",
    "aggregate",
    "as_verifier",
    "check_scores",
]


def _likelihood_as_shipped(generator: Generator | None) -> Verifier:
    return LikelihoodVerifier(generator, as_shipped=True)


def _clip(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.clip import ClipVerifier

    return ClipVerifier(class_names=_class_names(generator), device=_device(generator))


def _aesthetic(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.clip import AestheticVerifier

    return AestheticVerifier(device=_device(generator))


def _lite0_class(generator: Generator | None) -> Verifier:
    return lite0_classifier()


def _lite0_minilm(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.offline import OfflineTextVerifier

    return OfflineTextVerifier(class_names=_class_names(generator))


def _image_reward(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.preference import image_reward

    return image_reward(_class_names(generator), device=_device(generator))


def _pickscore(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.preference import pickscore

    return pickscore(_class_names(generator), device=_device(generator))


def _hpsv2(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.preference import hpsv2

    return hpsv2(_class_names(generator))


def _scene(generator: Generator | None) -> Verifier:
    from vistok.search.verifiers.scene import SceneVerifier

    return SceneVerifier()


VERIFIERS: dict[str, Callable[[Generator | None], Verifier]] = {
    "likelihood": LikelihoodVerifier,
    "likelihood_as_shipped": _likelihood_as_shipped,
    "clip": _clip,
    "aesthetic": _aesthetic,
    "lite0_class": _lite0_class,
    "lite0_minilm": _lite0_minilm,
    "image_reward": _image_reward,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "scene": _scene,
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


def _class_names(generator: Generator | None) -> Sequence[str]:
    return () if generator is None else getattr(generator.config, "class_names", ())


def _device(generator: Generator | None) -> str:
    return "cpu" if generator is None else str(generator.device)
