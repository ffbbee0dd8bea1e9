"""Search without an autoregressive prior: the verifier alone chooses, token after token (section 5 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vistok.search.beam import BeamConfig


@dataclass(frozen=True)
class ArFreeConfig(BeamConfig):
    """Beam search over tokens that no condition was asked for: of the uniform prior, or of a generator without its condition.

    The paper's setting: one token a step, 32 steps, 640 candidates of a row (1 % of its codebook), 5 rows.
    """

    name: ClassVar[str] = "ar_free"

    candidates_per_beam: int = 640
    max_steps: int = 32
    token_schedule: str | tuple[int, ...] = "linear"
    tokens_per_step: int = 1
