"""Several verifiers as one: by their rankings, or by their scores on a common scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.search.result import best_first
from vistok.search.verifiers.base import Verifier
from vistok.tokens import Tokens

Aggregation = Literal["rank", "weighted"]
_CONSTANT = 1e-8


class Ensemble(Verifier):
    """The weighted opinion of several verifiers on the candidates of one image. A weight of 0 leaves a member out.

    Args:
        members: verifiers, or names, where several of one kind are to be told apart, and verifiers.
        weights: one a member, 0 or more, not all 0; None is 1 for each.
        aggregation: ``rank`` (1 for the best of all members' rankings, 0 for the last of all) or
            ``weighted`` (each member's scores go from 0 to 1; their weighted sum).
        as_shipped: a member of weight 0 moves the weights of those after it, as in the official search.
    Raises:
        VistokError: weights that do not fit the members, or members that read different log-probabilities.
    """

    relative = True

    def __init__(
        self,
        members: Sequence[Verifier] | Mapping[str, Verifier],
        weights: Sequence[float] | None = None,
        *,
        aggregation: Aggregation = "rank",
        as_shipped: bool = False,
    ) -> None:
        named = dict(members) if isinstance(members, Mapping) else {}
        verifiers = list(named.values()) or list(members)
        weights = [1.0] * len(verifiers) if weights is None else [float(weight) for weight in weights]
        if not verifiers or len(weights) != len(verifiers) or min(weights) < 0 or max(weights) <= 0:
            raise VistokError(
                f"an ensemble has a weight of 0 or more for each member, not all 0; got {len(verifiers)} and {weights}"
            )
        if aggregation not in ("rank", "weighted"):
            raise VistokError(f"verifiers are combined by 'rank' or 'weighted', got {aggregation!r}")
        self.members = [verifier for verifier, weight in zip(verifiers, weights, strict=True) if weight > 0]
        self.weights, self.aggregation, self.as_shipped = weights, aggregation, as_shipped
        self.needs_images = any(member.needs_images for member in self.members)
        read = {member.scores_draws for member in self.members} - {None}
        if len(read) > 1:
            raise VistokError("the likelihoods of an ensemble are all as_shipped, or none is; got both")
        self.scores_draws = read.pop() if read else None
        names = list(named) or [verifier.name for verifier in verifiers]
        parts = [f"{weight:g}*{name}" for name, weight in zip(names, weights, strict=True) if weight > 0]
        self.name = f"{aggregation}({' + '.join(parts)})"

    def settings(self) -> dict[str, Any]:
        """The members' own."""
        members = [member.settings() for member in self.members]
        return {"as_shipped": self.as_shipped} | ({"members": members} if any(members) else {})

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``; all candidates are taken as those of one image."""
        return self.combine(self.measure(images, condition, tokens=tokens, log_probs=log_probs, num_new=num_new))

    def measure(self, images: Tensor | None, condition: list[Any], **facts: Any) -> Tensor:
        """The members' scores [N, k]; members of one kind are members of their own."""
        found = [
            torch.as_tensor(member(images if member.needs_images else None, condition, **facts)).detach()
            for member in self.members
        ]
        return torch.stack([scores.to("cpu", torch.float64) for scores in found], dim=1)

    def combine(self, measures: Tensor) -> Tensor:
        """Scores [n] of one image's candidates; computed in float32, as the official ones are."""
        weights = self.weights[: len(self.members)] if self.as_shipped else [w for w in self.weights if w > 0]
        return aggregate(measures.t(), weights, self.aggregation).double()


def aggregate(scores: Tensor, weights: Sequence[float], aggregation: Aggregation) -> Tensor:
    """Combined scores float32 [n] of n candidates from those of k members, [k, n].

    ``rank``: 1 - sum_k w_k rank_k / (sum_k w_k (n - 1)), where rank 0 is the best and equal scores are
    ranked in their order. ``weighted``: sum_k w_k (s - min) / (max - min), 0 where a member's are all equal.
    """
    scores, count = scores.float(), scores.shape[1]
    used = [(row, weight) for row, weight in zip(scores, weights, strict=True) if weight > 0]
    total = torch.zeros(count)
    for row, weight in used:
        if aggregation == "rank":
            total += weight * best_first(row).argsort().float()
            continue
        low, high = row.min(), row.max()
        if float(high - low) > _CONSTANT:
            total += weight * (row - low) / (high - low)
    if aggregation == "weighted":
        return total
    if count == 1:
        return -total
    return 1.0 - total / (sum(weight for _, weight in used) * (count - 1))
