"""Test-time search over tokens. The package itself can be called: ``vistok.search(...)`` is ``vistok.search.search(...)``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from vistok.search.ar_free import ArFreeConfig
from vistok.search.beam import BeamConfig
from vistok.search.best_of_n import BestOfNConfig
from vistok.search.lookahead import LookaheadConfig
from vistok.search.method import SearchMethod
from vistok.search.result import Cost, SearchResult, SearchStep
from vistok.search.run import METHODS, search
from vistok.search.verifiers import VERIFIERS, Ensemble, LikelihoodVerifier, Verifier

__all__ = [
    "METHODS",
    "VERIFIERS",
    "ArFreeConfig",
    "BeamConfig",
    "BestOfNConfig",
    "Cost",
    "Ensemble",
    "LikelihoodVerifier",
    "LookaheadConfig",
    "SearchMethod",
    "SearchResult",
    "SearchStep",
    "Verifier",
    "search",
]


class _CallableModule(ModuleType):
    """Importing this package puts it in the way of the function of the same name, so it stands in for it."""

    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
