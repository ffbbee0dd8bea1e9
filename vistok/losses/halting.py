"""Learning which tokens an image can do without (KARL, arXiv:2507.07995, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def halting_losses(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of halting predictions, the tokens that stay and those that go each by their own mean.

    Args:
        logits: [B, T], of a token's being superfluous.
        targets: [B, T], 1 where it is, 0 where it is needed; every row has as many of each.
    Returns:
        ``active`` over tokens that are needed and ``halt`` over the others; a key without tokens is left out.
    """
    logits, halts = logits.float(), targets > 0.5
    each = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    parts = {"active": ~halts, "halt": halts}
    return {name: each[chosen].mean() for name, chosen in parts.items() if bool(chosen.any())}


class ErrorSampler(torch.nn.Module):
    """Draws the errors that training asks for, and gives up on those that are no longer hard.

    It starts with the smallest ones. After each batch the probabilities of all errors that the best of its images
    stayed below lose a hundredth, so that harder ones come to dominate.

    Args:
        errors: the grid, ascending.
        start: how many of the smallest are drawn at the beginning, all with equal probability.
    """

    def __init__(self, errors: tuple[float, ...], *, start: int) -> None:
        super().__init__()
        self.register_buffer("errors", torch.tensor(errors))
        probabilities = torch.zeros(len(errors))
        probabilities[:start] = 1.0 / start
        self.register_buffer("probabilities", probabilities)

    def forward(self, uniform: Tensor) -> Tensor:
        """Numbers [B] in [0, 1) -> rows of the grid, int64 [B]."""
        edges = self.probabilities.cumsum(dim=0)
        # Never a row without probability, whatever rounding does to the last edge.
        last = int(self.probabilities.nonzero().max())
        return torch.searchsorted(edges, uniform.to(edges), right=True).clamp_max(last)

    @torch.no_grad()
    def update(self, error: Tensor) -> None:
        """Take in the errors [B] that a batch came to."""
        easy = self.errors >= error.min()
        weighted = torch.where(easy, 0.99 * self.probabilities, self.probabilities)
        self.probabilities.copy_(weighted / weighted.sum())
