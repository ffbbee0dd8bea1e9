"""What every search method works with: drawing, decoding and scoring, all counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vistok.generate.base import GenerationResult, Generator
from vistok.generate.pairing import same_origin
from vistok.models.base import Tokenizer
from vistok.search.result import Cost
from vistok.search.verifiers import Verifier, check_scores
from vistok.tokens import Tokens


@dataclass
class SearchContext:
    """A search under way. Methods touch models only through it, so that the cost account is exact.

    Attributes:
        generator, tokenizer, verifier: the models; no tokenizer where nothing is decoded.
        conditions: B of them.
        seeds: B, one a condition.
        length: tokens a candidate.
        sampling: differences from the generator's defaults.
        num_results: winners a condition.
        batch_size: rows at a time, in every model.
        cost: what was done so far.
    """

    generator: Generator
    tokenizer: Tokenizer | None
    verifier: Verifier
    conditions: list[Any]
    seeds: list[int]
    length: int
    sampling: Mapping[str, Any]
    num_results: int
    batch_size: int
    cost: Cost = field(default_factory=Cost)
    _warned: bool = False

    def generate(self, conditions: Sequence[Any], num: int, seeds: Sequence[int]) -> GenerationResult:
        """``num`` candidates for each condition, side by side; what the condition costs is paid once for all."""
        result = self.generator.generate(
            list(conditions), num, length=self.length, seeds=seeds, return_log_probs=True, **self.sampling
        )
        self.cost.token_forwards += result.token_forwards
        return result

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images [N, 3, H, W] on the CPU."""
        self._check_origin(tokens)
        parts = [self.tokenizer.decode(part.to(self.tokenizer.device)).cpu() for part in tokens.split(self.batch_size)]
        self.cost.decoder_passes += len(tokens)
        return torch.cat(parts)

    @torch.no_grad()
    def score(self, conditions: list[Any], tokens: Tokens, log_probs: Tensor | None, images: Tensor | None) -> Tensor:
        """The verifier's scores of N candidates, float64 [N]."""
        scores = self.verifier(images, conditions, tokens=tokens, log_probs=log_probs)
        self.cost.verifier_calls += len(tokens)
        return check_scores(scores, len(tokens), self.verifier.name)

    def _check_origin(self, tokens: Tokens) -> None:
        if not self._warned:
            self._warned = not same_origin(tokens, self.tokenizer)
