"""``search``: spend compute on choosing among tokens instead of on a larger model (arXiv:2604.15453)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.generate.captions import CaptionCondition
from vistok.generate.pairing import check_codebooks
from vistok.generate.sampling import row_seeds
from vistok.generate.text import TextCondition
from vistok.models.base import Tokenizer
from vistok.search.ar_free import ArFreeConfig
from vistok.search.beam import BeamConfig
from vistok.search.best_of_n import BestOfNConfig
from vistok.search.context import SearchContext
from vistok.search.lookahead import LookaheadConfig
from vistok.search.method import Found, SearchMethod
from vistok.search.prior import GeneratorPrior, Prior, UniformPrior
from vistok.search.result import Cost, SearchResult, SearchStep
from vistok.search.verifiers import Verifier, as_verifier
from vistok.tokens import Tokens

METHODS: dict[str, type[SearchMethod]] = {
    method.name: method for method in (BestOfNConfig, BeamConfig, LookaheadConfig, ArFreeConfig)
}


def search(
    generator: Generator | str,
    tokenizer: Tokenizer | None,
    condition: Any = None,
    *,
    method: str | SearchMethod = "best_of_n",
    verifier: str | Verifier | Callable[[Tensor, Any], Tensor] = "likelihood",
    budget: int | None = None,
    num_results: int = 1,
    length: int | None = None,
    prefix: Tokens | None = None,
    seeds: int | Sequence[int] | Tensor | None = None,
    batch_size: int = 256,
    decode: bool = True,
    preview: Mapping[str, Any] | None = None,
    decode_options: Mapping[str, Any] | None = None,
    decode_condition: Callable[[Sequence[Any]], Any] | None = None,
    fill: int | None = None,
    deduplicate: bool = True,
    **options: Any,
) -> SearchResult:
    """Search for the tokens that a verifier likes best, for each of B conditions.

    The search for an image is a function of its condition, its seed and the settings: not of what else is
    searched for in the call, but for the rounding of floating-point numbers.

    Args:
        generator: draws candidates; ``"uniform"`` draws every token alike from the whole codebook.
        tokenizer: decodes them; may be None where neither the verifier nor the caller wants images.
        condition: one condition, or a sequence of B; as ``generator.generate`` takes it. Without the generator (``"uniform"``,
            ``ar_free``) whatever the verifier understands, as an image [3, H, W] in [0, 1].
        method: ``best_of_n``, ``beam``, ``lookahead`` or ``ar_free`` (beam search without asking the
            generator about the condition), or a configuration, as ``BeamConfig(beam_width=3)``.
        verifier: a name of ``vistok.search.VERIFIERS``, a ``Verifier``, or a function of (images, condition)
            -> scores [N], where ``condition`` is a list with one a candidate.
        budget: the candidates that may be scored for an image: N of best-of-N; for the others, it sets
            ``candidates_per_beam`` as high as it goes, with fewer steps where it has no room for two. None leaves
            the method as it is.
        num_results: winners to return for each condition.
        length: tokens a candidate has at most, for ordered tokenizers; None is all.
        prefix: tokens to go on from, R rows for each condition, all of one length; not of best-of-N.
        seeds: one a condition; or one number for all. Under one seed, candidates of best-of-N are nested: a larger
            budget tries all that a smaller one tries, and its first candidate is what ``generate`` draws.
        batch_size: rows at a time, in every model (but the beams of one image stay together).
        decode: give images of the winners.
        preview: options of ``tokenizer.decode`` for candidates, as ``{"steps": 4}``; None takes ``decode_options``.
        decode_options: options of ``tokenizer.decode`` for the winners.
        decode_condition: of a tokenizer that decodes with a condition: the conditions to what it takes.
        fill: the id in place of tokens that are not drawn yet, so that a tokenizer that wants all its tokens can
            preview a prefix.
        deduplicate: decode and score equal candidates of an image once.
        options: of the method, as ``beam_width=3``, and differences from the generator's sampling defaults, as
            ``temperature=0.9``.
    Raises:
        VistokError: unknown method, verifier or option; models that do not fit each other; bad scores.
    """
    start = time.perf_counter()
    if not 1 <= batch_size or num_results < 1:
        raise VistokError(f"batch_size and num_results are 1 or more, got {batch_size} and {num_results}")
    method, sampling = _method(method, options)
    judge = as_verifier(verifier, generator if isinstance(generator, Generator) else None)
    prior = _prior(generator, tokenizer, method, sampling, judge)
    if tokenizer is None and judge.needs_images:
        raise VistokError("this verifier looks at images, so the search needs a tokenizer to decode with")
    length = prior.num_tokens if length is None else length
    if not 1 <= length <= prior.num_tokens:
        raise VistokError(f"candidates have 1 to {prior.num_tokens} tokens, got length={length}")
    if tokenizer is not None:
        check_codebooks(prior.codebook_size, tokenizer)
        if tokenizer.conditional and decode_condition is None:
            raise VistokError(f"{tokenizer.name or tokenizer.family} decodes with a condition; give decode_condition")
    conditions = condition_rows(condition)
    prior.check(conditions)  # an unknown condition is an error before any work is done
    rows = _prefix_rows(prefix, len(conditions), length)
    if budget is not None:
        have = 0 if prefix is None else prefix.num_tokens
        method = method.for_budget(budget, length=length, start=have, rows=max(1, rows))
    final = dict(decode_options or {})
    context = SearchContext(
        prior=prior,
        tokenizer=tokenizer,
        verifier=judge,
        conditions=conditions,
        seeds=row_seeds(len(conditions), seeds),
        length=length,
        num_results=num_results,
        batch_size=batch_size,
        prefix=None if prefix is None else prefix.ids.cpu(),
        preview=final if preview is None else dict(preview),
        final=final,
        decode_condition=decode_condition,
        fill=fill,
        deduplicate=deduplicate,
    )
    method.check(context)
    result = _joined([_one_group(method, part, decode) for part in _groups(method, context)])
    result.cost.seconds = time.perf_counter() - start
    return dataclasses.replace(result, method=method.name, verifier=judge.name)


def condition_rows(condition: Any) -> list[Any]:
    """One condition or many -> a list of them. Numbers [B] are B classes; an image [3, H, W] is one condition, [B, 3, H, W] are B."""
    if isinstance(condition, (TextCondition, CaptionCondition)):
        return [condition[torch.tensor([row])] for row in range(len(condition))]
    if isinstance(condition, Tensor) and condition.ndim == 3:
        return [condition]
    if isinstance(condition, Tensor):
        return condition.reshape(-1).tolist() if condition.ndim < 2 else list(condition)
    if condition is None or isinstance(condition, (str, int)) or not hasattr(condition, "__iter__"):
        return [condition]
    return list(condition)


def _method(method: str | SearchMethod, options: dict[str, Any]) -> tuple[SearchMethod, dict[str, Any]]:
    """The method with those of the options that are its own, and the others."""
    if isinstance(method, str):
        if method not in METHODS:
            raise VistokError(f"there is no search method {method!r}; {nearest(method, METHODS)}")
        method = METHODS[method]()
    if not isinstance(method, SearchMethod):
        raise VistokError(f"a method is one of {', '.join(METHODS)}, or its configuration; got {method!r}")
    names = {field.name for field in dataclasses.fields(method)}
    own = {name: value for name, value in options.items() if name in names}
    return dataclasses.replace(method, **own), {name: options[name] for name in options.keys() - own.keys()}


def _prior(
    generator: Generator | str,
    tokenizer: Tokenizer | None,
    method: SearchMethod,
    sampling: dict[str, Any],
    verifier: Verifier,
) -> Prior:
    if isinstance(generator, Generator):
        options = {"conditional": not isinstance(method, ArFreeConfig), "scores_draws": bool(verifier.scores_draws)}
        return GeneratorPrior(generator, sampling, **options)
    if generator != "uniform":
        raise VistokError(f"candidates come from a generator or from 'uniform', got {generator!r}")
    if tokenizer is None or tokenizer.continuous:
        raise VistokError("the uniform prior draws from a tokenizer's codebook: give a tokenizer that has one")
    if sampling:
        raise VistokError(f"the uniform prior has no sampling options, got {', '.join(sorted(sampling))}")
    return UniformPrior(
        tokenizer.codebook_size,
        tokenizer.num_tokens,
        family=tokenizer.family,
        model=tokenizer.name,
        weight_hash=tokenizer.weight_hash(),
    )


def _prefix_rows(prefix: Tokens | None, count: int, length: int) -> int:
    """How many rows of the prefix each condition has; 0 without one."""
    if prefix is None:
        return 0
    lengths = prefix.lengths.tolist()
    if not lengths or len(prefix) % count or set(lengths) != {prefix.num_tokens} or prefix.num_tokens >= length:
        raise VistokError(
            f"a prefix has as many rows for each of {count} conditions, all of one length below {length}; "
            f"got {len(prefix)} rows of lengths {lengths[:8]}"
        )
    return len(prefix) // count


def _groups(method: SearchMethod, context: SearchContext) -> list[SearchContext]:
    """The images that are searched for together; all groups count into one account."""
    size, rows = method.images_together(context), 0
    if context.prefix is not None:
        rows = len(context.prefix) // len(context.conditions)
    return [
        dataclasses.replace(
            context,
            conditions=context.conditions[start : start + size],
            seeds=context.seeds[start : start + size],
            prefix=None if context.prefix is None else context.prefix[start * rows : (start + size) * rows],
            _gallery={},
        )
        for start in range(0, len(context.conditions), size)
    ]


def _one_group(method: SearchMethod, context: SearchContext, decode: bool) -> SearchResult:
    found: Found = method.search(context)
    ids = found.ids if found.shown is None else found.shown
    each, images = ids.shape[1], None
    if decode and context.tokenizer is not None:
        owners = [owner for owner in range(len(ids)) for _ in range(each)]
        images = context.images(owners, ids.flatten(0, 1), found.noise_seeds)
    return SearchResult(
        tokens=context.prior.tokens(ids.flatten(0, 1)),
        images=images,
        scores=found.scores.flatten(),
        history=found.history,
        cost=context.cost,
    )


def _joined(parts: list[SearchResult]) -> SearchResult:
    """The results of all groups, whose steps are the same."""
    if len(parts) == 1:
        return parts[0]
    history = tuple(
        SearchStep(
            tokens=Tokens.cat([step.tokens for step in steps]),
            scores=torch.cat([step.scores for step in steps]),
            kept=torch.cat([step.kept for step in steps]),
            parents=None if steps[0].parents is None else torch.cat([step.parents for step in steps]),
        )
        for steps in zip(*(part.history for part in parts), strict=True)
    )
    cost: Cost = parts[0].cost  # shared by all groups
    return SearchResult(
        tokens=Tokens.cat([part.tokens for part in parts]),
        images=None if parts[0].images is None else torch.cat([part.images for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        history=history,
        cost=cost,
    )
