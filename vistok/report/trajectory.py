"""How a search got there: the best beam decoded at 1, 2, 4, ... tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vistok.report.grid import image_grid
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer
    from vistok.search.result import SearchResult


@torch.no_grad()
def search_trajectory(
    tokenizer: Tokenizer,
    result: SearchResult,
    *,
    names: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    condition: Any = None,
    decode_options: Mapping[str, Any] | None = None,
) -> Image.Image:
    """A condition a row, a round of the search a column: the candidate that was best then, with its score below.

    Args:
        tokenizer: the one of the search; ordered.
        result: of ``vistok.search``.
        names: of the conditions, left of their rows.
        seeds: the search's, one a condition, with which a decoder that draws noise draws what the search has seen.
        condition: what a conditional tokenizer decodes with, of all conditions.
        decode_options: keyword arguments of ``decode``.
    """
    from vistok.seeds import stable_seed

    count = len(result.history[0].scores)
    each = len(result.tokens) // count
    steps: list[tuple[Tokens, list[float]]] = [
        (Tokens.cat([result.best_at(step, image) for image in range(count)]), round_.scores.amax(dim=1).tolist())
        for step, round_ in enumerate(result.history)
    ]
    if result.tokens.num_tokens > result.history[-1].tokens.num_tokens:  # completed, or looked ahead
        steps.append((result.tokens[::each], result.scores[::each].tolist()))
    options = dict(decode_options or {}) | ({} if condition is None else {"condition": condition})
    noise = {} if seeds is None else tokenizer.decode_noise([stable_seed(seed, "decode") for seed in seeds])
    columns = [tokenizer.decode(tokens.to(tokenizer.device), **noise, **options).cpu() for tokens, _ in steps]
    titles = [f"{tokens.num_tokens} token{'s' if tokens.num_tokens > 1 else ''}" for tokens, _ in steps]
    return image_grid(
        [[column[row] for column in columns] for row in range(count)],
        column_titles=titles,
        row_titles=list(names),
        captions=[[f"{scores[row]:.4g}" for _, scores in steps] for row in range(count)],
    )
