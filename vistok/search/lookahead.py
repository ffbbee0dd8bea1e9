"""Lookahead: beam search that judges a prefix by what it most likely becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.search.beam import BeamConfig
from vistok.search.context import SearchContext
from vistok.search.prior import Rows


@dataclass(frozen=True)
class LookaheadConfig(BeamConfig):
    """Beam search whose candidates are continued by their most likely tokens before they are decoded and scored.

    The beam keeps the rows as they were; the images that are shown at the end are continued like the candidates'.
    A verifier that needs no images scores the rows as they are.

    Attributes:
        lookahead_number: how many tokens candidates are continued by; -1 to the end.
        max_lookahead_step: the number of steps that look ahead, from the first; -1 for all, 0 for none.
    """

    name: ClassVar[str] = "lookahead"

    lookahead_number: int = -1
    max_lookahead_step: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.lookahead_number, self.max_lookahead_step) < -1:
            raise ConfigError("lookahead_number and max_lookahead_step are 0 or more, or -1 for all")

    def scored_length(self, step: int, length: int, context: SearchContext) -> int:
        if 0 <= self.max_lookahead_step <= step:
            return length
        most = context.length - length
        return length + (most if self.lookahead_number < 0 else min(self.lookahead_number, most))

    def extended(self, rows: Rows, step: int, context: SearchContext) -> Tensor:
        ids = rows.ids
        more = self.scored_length(step, ids.shape[1], context) - ids.shape[1]
        if more == 0:
            return ids
        parts = []
        for index in torch.arange(len(ids)).split(context.batch_size):
            ahead = rows.copy()
            if len(index) < len(ids):
                ahead.select(index)
            ahead.draw(more, sample=False)
            parts.append(ahead.ids)
        return torch.cat(parts)
