"""Test-time search: spend computation on choosing among tokens instead of on parameters."""

from vistok.search.run import Cost, SearchResult, search
from vistok.search.verifiers import Likelihood, Verifier

__all__ = ["Cost", "Likelihood", "SearchResult", "Verifier", "search"]
