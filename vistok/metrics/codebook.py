"""How much of a codebook is used: a histogram of ids, streaming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.metrics.processes import sum_over_processes
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

_MAX_CODES = 1 << 24  # 128 MB of counts


class CodebookUsage:
    """Counts ids, and says how evenly they use their codebook.

    Few tokens cannot use a large codebook: a usage is to be read together with ``tokens``.

    Args:
        codebook_size: K; or the factors of a product codebook, the first changing fastest, which
            are counted one by one too. A product above 2^24 is counted by its factors only.
    Raises:
        VistokError: not positive, or a plain codebook above 2^24.
    """

    def __init__(self, codebook_size: int | tuple[int, ...]) -> None:
        self.factors = codebook_size if isinstance(codebook_size, tuple) else ()
        sizes = self.factors or (codebook_size,)
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            raise VistokError(f"a codebook size is a positive number, or several, got {codebook_size!r}")
        self.vocab_size = math.prod(sizes)
        if max(sizes) > _MAX_CODES:
            raise VistokError(f"codebooks of more than {_MAX_CODES} codes are not counted, got {codebook_size}")
        self.tokens = 0
        whole = self.vocab_size if self.vocab_size <= _MAX_CODES else 0
        self._counts = torch.zeros(whole, dtype=torch.int64)
        self._factor_counts = [torch.zeros(size, dtype=torch.int64) for size in self.factors]

    def update(self, ids: Tokens | Tensor) -> None:
        """Count tokens.

        Args:
            ids: Tokens, of which those past a row's length do not count; or whole numbers of any
                shape in [0, K), which all count.
        Raises:
            VistokError: continuous tokens, not whole numbers, or an id outside [0, K).
        """
        if isinstance(ids, Tokens):
            if ids.ids is None:
                raise VistokError("continuous tokens have no codebook to count")
            ids = ids.ids[ids.mask()]
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise VistokError(f"a codebook's ids are whole numbers, got {ids.dtype}")
        ids = ids.detach().flatten().to("cpu", torch.int64)
        if not len(ids):
            return
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise VistokError(f"ids lie in [0, {self.vocab_size}), got {low} to {high}")
        ones = torch.ones_like(ids)
        if len(self._counts):
            self._counts.index_add_(0, ids, ones)
        rest = ids
        for size, counts in zip(self.factors, self._factor_counts, strict=True):
            counts.index_add_(0, rest % size, ones)
            rest = rest // size
        self.tokens += len(ids)

    def merge(self, other: CodebookUsage) -> None:
        """Add the counts of ``other``."""
        if (self.factors, self.vocab_size) != (other.factors, other.vocab_size):
            raise VistokError(f"codebooks of {self.vocab_size} and {other.vocab_size} codes cannot be merged")
        self.tokens += other.tokens
        self._counts += other._counts
        for counts, more in zip(self._factor_counts, other._factor_counts, strict=True):
            counts += more

    def all_reduce(self, accelerator: Accelerator | None) -> None:
        """Add the counts of all other processes; afterwards all have the same. None: there is no other."""
        self.tokens = int(sum_over_processes(torch.tensor(self.tokens), accelerator))
        self._counts = sum_over_processes(self._counts, accelerator)
        self._factor_counts = [sum_over_processes(counts, accelerator) for counts in self._factor_counts]

    def state(self) -> dict[str, np.ndarray]:
        """What ``restore`` goes on from."""
        factors = {f"factor{number}": counts.numpy() for number, counts in enumerate(self._factor_counts)}
        return {"tokens": np.array(self.tokens), "counts": self._counts.numpy(), **factors}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Forget what was counted, and go on from a ``state`` of the same codebook."""
        if state["counts"].shape != tuple(self._counts.shape):
            raise VistokError(f"a state of {len(state['counts'])} codes does not fit a codebook of {self.vocab_size}")
        self.tokens, self._counts = int(state["tokens"]), torch.from_numpy(state["counts"].copy())
        self._factor_counts = [
            torch.from_numpy(state[f"factor{number}"].copy()) for number in range(len(self._factor_counts))
        ]

    def compute(self) -> dict[str, float]:
        """What the counts say.

        Returns:
            - ``usage``: fraction of the codes that occurred, 0 to 1; ``dead_codes``: how many did not.
            - ``entropy_bits``: of the codes, 0 to log2 K; ``perplexity``: 2 to that power, 1 to K.
            - of a product codebook: ``factor_usage``, the lowest of its factors, and
              ``factor_entropy_bits``, the sum over its factors, which the entropy never exceeds.

            The first four are left out where only the factors are counted.
        """
        out = _statistics(self._counts) if len(self._counts) else {}
        if self.factors:
            factors = self.compute_factors()
            out["factor_usage"] = min(factor["usage"] for factor in factors)
            out["factor_entropy_bits"] = sum(factor["entropy_bits"] for factor in factors)
        return out

    def compute_factors(self) -> list[dict[str, float]]:
        """``usage``, ``dead_codes``, ``entropy_bits`` and ``perplexity`` of each factor of a product codebook."""
        return [_statistics(counts) for counts in self._factor_counts]


def _statistics(counts: Tensor) -> dict[str, float]:
    used = counts[counts > 0].double()
    shares = used / used.sum().clamp(min=1.0)
    entropy = max(0.0, float(-(shares * shares.log2()).sum()))
    return {
        "usage": len(used) / len(counts),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
        "dead_codes": len(counts) - len(used),
    }
