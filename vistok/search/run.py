"""``search``: spend compute on choosing among tokens instead of on a larger model (arXiv:2604.15453)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.generate.pairing import check_pair
from vistok.generate.sampling import row_seeds
from vistok.models.base import Tokenizer
from vistok.search.best_of_n import best_of_n
from vistok.search.context import SearchContext
from vistok.search.result import SearchResult, SearchStep
from vistok.search.verifiers import Verifier, as_verifier

Method = Callable[[SearchContext, int], tuple[tuple[SearchStep, ...], "Tensor | None"]]
METHODS: dict[str, Method] = {"best_of_n": best_of_n}


def search(
    generator: Generator,
    tokenizer: Tokenizer | None,
    condition: Any = None,
    *,
    method: str = "best_of_n",
    verifier: str | Verifier | Callable[[Tensor, Any], Tensor] = "likelihood",
    budget: int = 8,
    num_results: int = 1,
    length: int | None = None,
    seeds: int | Sequence[int] | Tensor | None = None,
    batch_size: int = 256,
    decode: bool = True,
    **sampling: Any,
) -> SearchResult:
    """Search for the tokens that a verifier likes best, for each of B conditions.

    Args:
        generator: draws candidates.
        tokenizer: decodes them; may be None where neither the verifier nor the caller wants images.
        condition: one condition, or a sequence of B; as ``generator.generate`` takes it.
        method: ``best_of_n``.
        verifier: ``likelihood``, a ``Verifier``, or a function of (images, condition) -> scores [N],
            where ``condition`` is a list with one a candidate.
        budget: for best-of-N, the candidates a condition.
        num_results: winners to return for each condition, at most ``budget``.
        length: tokens a candidate, for ordered tokenizers; None is all.
        seeds: one a condition; or one number for all. Under one seed, candidates are nested: a larger
            budget tries all that a smaller one tries, and its first candidate is what ``generate`` draws.
        batch_size: rows at a time, in every model.
        decode: give images of the winners.
        sampling: differences from the generator's defaults, as ``temperature=0.9``.
    Raises:
        VistokError: unknown method, verifier or option; models that do not fit each other; bad scores.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise VistokError(f"there is no search method {method!r}; {nearest(method, METHODS)}")
    judge = as_verifier(verifier, generator)
    length = generator.num_tokens if length is None else length
    _check_numbers(budget, num_results, batch_size)
    _check_models(generator, tokenizer, length, needs_images=judge.needs_images)
    conditions = condition_rows(condition)
    generator.encode_condition(conditions)  # an unknown condition is an error before any work is done
    context = SearchContext(
        generator=generator,
        tokenizer=tokenizer,
        verifier=judge,
        conditions=conditions,
        seeds=row_seeds(len(conditions), seeds),
        length=length,
        sampling=sampling,
        num_results=num_results,
        batch_size=batch_size,
    )
    history, images = METHODS[method](context, budget)
    last = history[-1]
    scores = last.scores.gather(1, last.kept)
    rows = last.kept + torch.arange(len(conditions))[:, None] * last.scores.shape[1]
    tokens = last.tokens[rows.flatten()]
    if not decode or tokenizer is None:
        images = None
    elif images is None:
        images = context.decode(tokens)
    context.cost.seconds = time.perf_counter() - start
    return SearchResult(
        tokens=tokens,
        images=images,
        scores=scores.flatten(),
        history=history,
        cost=context.cost,
        method=method,
        verifier=judge.name,
    )


def condition_rows(condition: Any) -> list[Any]:
    """One condition or many -> a list of them."""
    if isinstance(condition, Tensor):
        return condition.reshape(-1).tolist() if condition.ndim < 2 else list(condition)
    if condition is None or isinstance(condition, (str, int)) or not hasattr(condition, "__iter__"):
        return [condition]
    return list(condition)


def _check_numbers(budget: int, num_results: int, batch_size: int) -> None:
    if budget < 1 or batch_size < 1:
        raise VistokError(f"budget and batch_size are 1 or more, got {budget} and {batch_size}")
    if not 1 <= num_results <= budget:
        raise VistokError(f"num_results is 1 to budget={budget}, got {num_results}")


def _check_models(generator: Generator, tokenizer: Tokenizer | None, length: int, *, needs_images: bool) -> None:
    if tokenizer is None:
        if needs_images:
            raise VistokError("this verifier looks at images, so the search needs a tokenizer to decode with")
        return
    check_pair(generator, tokenizer, length)
