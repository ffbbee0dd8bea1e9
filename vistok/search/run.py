"""``search``: one door to all methods, and what every method returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.sampling import derive_seed
from vistok.search.verifiers import Verifier, make_verifier
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.generate import Generator
    from vistok.models.base import Tokenizer


@dataclass
class Cost:
    """What a search spent.

    Attributes:
        token_forwards: positions that went through the generator to draw candidates.
        decoded_images: images that the tokenizer decoded, for scoring and for the result.
        verifier_calls: candidates that were scored.
        seconds: wall-clock time.
    """

    token_forwards: int = 0
    decoded_images: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """The best of what was found, a row a condition.

    Attributes:
        tokens: B rows.
        images: [B, 3, H, W] in [0, 1].
        scores: float [B], the verifier's.
        history: for every row its candidates' scores in the order they were tried.
        cost: what it took, for all rows.
    """

    tokens: Tokens
    images: Tensor
    scores: Tensor
    history: list[list[float]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


@torch.no_grad()
def search(
    generator: Generator,
    tokenizer: Tokenizer,
    condition: Any,
    *,
    method: str = "best_of_n",
    verifier: str | Callable[..., Tensor] = "likelihood",
    budget: int = 8,
    seeds: Sequence[int] | None = None,
    batch_size: int = 256,
    **sampling: Any,
) -> SearchResult:
    """Search for tokens that a verifier likes.

    Args:
        generator: draws candidates.
        tokenizer: decodes them.
        condition: a sequence of conditions, one a row of the result; None stands for no condition.
        method: ``best_of_n``: draw ``budget`` candidates of each row, keep the best.
        verifier: ``likelihood``, or a callable (images, condition) -> scores [N], higher is better.
        budget: candidates of each row. Seeds are nested: a larger budget tries the smaller one's
            candidates too, so it never ends with a lower score.
        seeds: one a row; default 0, 1, 2, ...
        batch_size: candidates at a time.
        sampling: of the generator (temperature, top_k, cfg_scale, ...).
    Raises:
        VistokError: unknown method or verifier, a budget below 1, seeds that do not match.
    """
    if method != "best_of_n":
        raise VistokError(f"there is no search method {method!r}; {nearest(method, ['best_of_n'])}")
    if budget < 1:
        raise VistokError(f"the budget is one candidate or more, got {budget}")
    conditions = list(condition) if isinstance(condition, (list, tuple, Tensor)) else [condition]
    seeds = list(range(len(conditions))) if seeds is None else list(seeds)
    if len(seeds) != len(conditions):
        raise VistokError(f"{len(conditions)} conditions want as many seeds, got {len(seeds)}")
    start = time.perf_counter()
    cost = Cost()
    judge = make_verifier(verifier, generator)
    scores, candidates = _draw(generator, tokenizer, conditions, seeds, budget, judge, batch_size, cost, sampling)
    best = scores.argmax(dim=1)  # the first of equal ones
    tokens = candidates[torch.arange(len(conditions)) * budget + best]
    images = torch.cat([tokenizer.decode(part).cpu() for part in tokens.split(batch_size)])
    cost.decoded_images += len(images)
    cost.seconds = time.perf_counter() - start
    return SearchResult(tokens, images, scores.gather(1, best[:, None])[:, 0], scores.tolist(), cost)


def _draw(
    generator: Generator,
    tokenizer: Tokenizer,
    conditions: list[Any],
    seeds: list[int],
    budget: int,
    judge: Verifier,
    batch_size: int,
    cost: Cost,
    sampling: dict[str, Any],
) -> tuple[Tensor, Tokens]:
    """All candidates, a row's side by side, and their scores [B, budget]."""
    # The first candidate has the row's own seed, so that a budget of one is plain sampling.
    keys = [
        (row, seeds[row] if number == 0 else derive_seed(seeds[row], number))
        for row in range(len(conditions))
        for number in range(budget)
    ]
    parts, scores = [], []
    for start in range(0, len(keys), batch_size):
        chunk = keys[start : start + batch_size]
        given = [conditions[row] for row, _ in chunk]
        drawn = generator.generate(given, seeds=[seed for _, seed in chunk], **sampling)
        cost.token_forwards += drawn.token_forwards
        images = None
        if judge.needs_images:
            images = tokenizer.decode(drawn.tokens)
            cost.decoded_images += len(images)
        values = judge(images, given, drawn.tokens)
        if values.shape != (len(chunk),):
            raise VistokError(f"the verifier gave scores {list(values.shape)} for {len(chunk)} candidates")
        cost.verifier_calls += len(chunk)
        scores.append(values.detach().float().cpu())
        parts.append(drawn.tokens.to("cpu"))
    return torch.cat(scores).view(len(conditions), budget), Tokens.cat(parts)
