"""Best-of-N: draw N candidates for each condition, keep the one the verifier likes best."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.search.context import SearchContext
from vistok.search.result import SearchStep, best_first
from vistok.seeds import stable_seed
from vistok.tokens import Tokens


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a condition's candidate; the first has the condition's own, and so is plain sampling.

    It does not depend on N: the candidates of a larger search contain those of a smaller one, so a
    larger budget never ends with a lower score.
    """
    return seed if candidate == 0 else stable_seed(seed, candidate)


def best_of_n(context: SearchContext, budget: int) -> tuple[tuple[SearchStep, ...], Tensor | None]:
    """Search with N = ``budget`` candidates a condition.

    Candidates are drawn in blocks of up to ``context.batch_size`` rows: whole conditions where they
    fit, else parts of one. Only the images of the best so far are kept.

    Returns:
        The one round there is, and the winners' images if the verifier had them made.
    """
    rows = len(context.conditions)
    width = min(budget, context.batch_size)  # candidates a block
    height = max(1, context.batch_size // width)  # conditions a block
    scores = torch.full((rows, budget), float("-inf"), dtype=torch.float64)
    images: dict[tuple[int, int], Tensor] = {}
    parts: list[Tokens] = []
    order: list[int] = []
    for top in range(0, rows, height):
        block_rows = range(top, min(top + height, rows))
        for left in range(0, budget, width):
            block_columns = range(left, min(left + width, budget))
            places = [(row, column) for row in block_rows for column in block_columns]
            drawn = context.generate(
                [context.conditions[row] for row in block_rows],
                len(block_columns),
                [candidate_seed(context.seeds[row], column) for row, column in places],
            )
            pictures = context.decode(drawn.tokens) if context.verifier.needs_images else None
            conditions = [context.conditions[row] for row, _ in places]
            found = context.score(conditions, drawn.tokens, drawn.log_probs, pictures)
            scores[block_rows.start : block_rows.stop, left : block_columns.stop] = found.view(len(block_rows), -1)
            parts.append(drawn.tokens.to("cpu"))
            order += [row * budget + column for row, column in places]
            if pictures is not None:
                images.update(zip(places, pictures, strict=True))
                best = best_first(scores[block_rows.start : block_rows.stop])[:, : context.num_results].tolist()
                images = {
                    place: picture
                    for place, picture in images.items()
                    if place[0] < top or place[1] in best[place[0] - top]
                }
    tokens = Tokens.cat(parts)[torch.tensor(order).argsort()]
    kept = best_first(scores)[:, : context.num_results]
    winners = [images[row, column] for row, columns in enumerate(kept.tolist()) for column in columns] if images else []
    return (SearchStep(tokens=tokens, scores=scores, kept=kept),), torch.stack(winners) if winners else None
