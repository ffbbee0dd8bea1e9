"""How much of a codebook is used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vistok.errors import VistokError


class CodebookUsage:
    """A running histogram of ids.

    Args:
        codebook_size: K, or the factors of which it is the product.
    """

    def __init__(self, codebook_size: int | tuple[int, ...]) -> None:
        self.size = math.prod(codebook_size) if isinstance(codebook_size, tuple) else codebook_size
        self.counts = torch.zeros(self.size, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Count ids of any shape, each in [0, K).

        Raises:
            VistokError: an id outside the codebook.
        """
        flat = ids.detach().flatten()
        counts = torch.bincount(flat, minlength=self.size)
        if len(counts) > self.size:
            raise VistokError(f"an id of {int(flat.max())} is outside a codebook of {self.size}")
        self.counts += counts.cpu()

    def merge(self, other: CodebookUsage) -> None:
        """Add another histogram of the same codebook."""
        if other.size != self.size:
            raise VistokError(f"cannot merge the usage of codebooks of {self.size} and {other.size}")
        self.counts += other.counts

    def compute(self) -> dict[str, float]:
        """``usage`` (fraction of ids seen), ``entropy_bits``, ``perplexity`` (2^entropy), ``dead_codes``."""
        total = int(self.counts.sum())
        seen = int((self.counts > 0).sum())
        if not total:
            return {"usage": 0.0, "entropy_bits": 0.0, "perplexity": 1.0, "dead_codes": float(self.size)}
        share = self.counts[self.counts > 0].double() / total
        entropy = float(-(share * share.log2()).sum())
        return {"usage": seen / self.size, "entropy_bits": entropy, "perplexity": 2.0**entropy, "dead_codes": float(self.size - seen)}
