"""Filling in masked tokens, several at a time, the surest first (MaskGIT, arXiv:2202.04200): sampling, masks, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import ConfigError, VistokError
from vistok.generate.base import Generator, evaluating
from vistok.generate.sampling import SamplingConfig, draw, filter_logits, row_noise
from vistok.tokens import Tokens

_SMALLEST = 1e-20


@dataclass(frozen=True)
class MaskedSamplingConfig(SamplingConfig):
    """How masked tokens are filled in.

    Temperature and filters shape the logits as everywhere. What is drawn, and which draws are kept, is
    decided as by Gumbel noise; ``temperature=0`` leaves it out. Published guidance of the form c + w * (c - u)
    is here ``cfg_scale = 1 + w``, as always null + scale * (conditional - null).

    Attributes:
        steps: passes through the model.
        randomize_temperature: size of the Gumbel noise in the first step; it falls to 0 linearly.
        anneal: the logits are also divided by a number that falls from 1.3 to 0.5.
        random_confidence: which draws are kept is decided under noise too.
    """

    steps: int = 8
    randomize_temperature: float = 4.5
    anneal: bool = False
    random_confidence: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"steps is 1 or more; got {self.steps}")
        if not 0.0 <= self.randomize_temperature < float("inf"):
            raise ConfigError(f"randomize_temperature is 0 or more; got {self.randomize_temperature}")


@dataclass(frozen=True)
class Filled:
    """Ids [B, L] that were filled in, and their log-probabilities, under the logits of the step that kept them.

    Attributes:
        ids: int64.
        log_probs: under the model's conditional distribution itself.
        draw_log_probs: under the distribution that was drawn from; without noise, the guided one.
        passes: how often the model read each row; guidance counts twice.
    """

    ids: Tensor
    log_probs: Tensor
    draw_log_probs: Tensor
    passes: int


class StepNoise(Protocol):
    """The chance in one step after the other."""

    def draw(self, logits: Tensor, size: float) -> Tensor:
        """Ids [B, L] that are distributed as the largest of logits [B, L, K] with Gumbel noise of this size: as softmax(logits / size)."""
        ...

    def keep(self) -> Tensor:
        """Gumbel noise [B, L] of what is kept."""
        ...


class RowNoise:
    """Chance that is a function of each row's seed: two uniform numbers a token and step.

    The released codes add Gumbel noise to every logit; to draw from the distribution that this makes takes one number a token
    and not thousands, which is what generation would spend its time on.

    Args:
        seeds: one a row.
        num_tokens, steps: of generation.
        device: where the numbers are wanted.
    """

    def __init__(self, seeds: Sequence[int], num_tokens: int, steps: int, device: torch.device) -> None:
        numbers = row_noise(seeds, (steps, 2, num_tokens)).to(device)
        self._draws, self._kept = (iter(part.unbind(1)) for part in numbers.unbind(2))

    def draw(self, logits: Tensor, size: float) -> Tensor:
        return draw(logits / size, next(self._draws))

    def keep(self) -> Tensor:
        return gumbel(next(self._kept))


def masked_counts(num_tokens: int, steps: int) -> list[int]:
    """How many tokens are masked after each step: the arccosine of its share, at least one and one less each, none at last."""
    left, counts = num_tokens, []
    for step in range(1, steps):
        left = max(1, min(left - 1, math.floor(num_tokens * math.acos(step / steps) / (math.pi / 2))))
        counts.append(left)
    return [*counts, 0]


def fill_ids(
    read: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]],
    masked: Tensor,
    noise: StepNoise,
    sampling: MaskedSamplingConfig,
    *,
    late_guidance: bool = False,
) -> Filled:
    """Fill in all tokens.

    Args:
        read: (ids int64 [B, L], masked bool [B, L], guided) -> logits [B, L, K], and those under the null
            condition where ``guided``. Ids that are masked have no meaning.
        masked: bool [B, L], all True.
        noise: draws the ids, then says what is kept, in every step but the last.
        sampling: how.
        late_guidance: the guidance schedule is read at the end of a step, not at its beginning.
    """
    num_tokens, steps = masked.shape[1], sampling.steps
    ids = torch.zeros(masked.shape, dtype=torch.int64, device=masked.device)
    log_probs, draw_log_probs = torch.zeros(2, *masked.shape, device=masked.device)
    passes = 0
    for step, count in enumerate(masked_counts(num_tokens, steps)):
        share = (step + 1) / steps
        now = sampling.at(share if late_guidance else step / steps)
        raw, null = read(ids, masked, now.guided)
        passes += 2 if now.guided else 1
        raw = raw.float()
        logits = raw if null is None else null.float() + now.cfg_scale * (raw - null.float())
        if sampling.anneal:
            logits = logits / (0.5 + 0.8 * (1.0 - share))
        logits = filter_logits(logits, sampling)
        size = 0.0 if sampling.greedy else sampling.randomize_temperature * (1.0 - share)
        drawn = noise.draw(logits, size) if size else logits.argmax(dim=-1)
        ids = torch.where(masked, drawn, ids)
        picked = drawn[..., None]
        scores = logits.gather(-1, picked)[..., 0]
        tempered = logits / size if size else logits
        parts = [tempered.gather(-1, picked)[..., 0] - tempered.logsumexp(-1)]
        parts.append(raw.gather(-1, picked)[..., 0] - raw.logsumexp(-1))
        draw_log_probs = torch.where(masked, parts[0], draw_log_probs)
        log_probs = torch.where(masked, parts[1], log_probs)
        if count == 0:
            break
        if size and sampling.random_confidence:
            scores = scores + size * noise.keep()
        scores = scores.masked_fill(~masked, float("inf"))
        masked = scores <= scores.kthvalue(count, dim=-1, keepdim=True).values
    return Filled(ids, log_probs, draw_log_probs, passes)


def gumbel(uniforms: Tensor) -> Tensor:
    """Gumbel noise out of uniform numbers."""
    return -torch.log((-torch.log(uniforms.clamp_min(_SMALLEST))).clamp_min(_SMALLEST))


def masks_of(shares: Tensor, order: Tensor) -> Tensor:
    """Masks of training, bool [B, L].

    Args:
        shares: uniform numbers [B]; the masked share of a row is their arccosine over a quarter turn.
        order: uniform numbers [B, L]; the lowest ones are masked.
    """
    ratio = torch.acos(shares.double()) / (math.pi / 2)
    counts = (order.shape[1] * ratio).round().clamp_min(1)
    return order.argsort(dim=-1).argsort(dim=-1) < counts[:, None]


def masked_loss(
    logits: Tensor, ids: Tensor, masked: Tensor, *, label_smoothing: float, unmasked_weight: float
) -> dict[str, Tensor]:
    """The cross-entropy of ids [B, L] under logits [B, L, K], in nats: of masked ones, and a little of the others.

    Returns:
        ``loss``; without smoothing and of masked tokens alone, ``nll_per_token``; and the ``accuracy`` there.
    """
    smooth = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none", label_smoothing=label_smoothing)
    weights = torch.where(masked, 1.0, unmasked_weight)
    loss = (smooth.view(ids.shape) * weights).sum() / (weights.sum() + 1e-8)
    with torch.no_grad():
        nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        right = (logits.argmax(dim=-1) == ids) & masked
        accuracy = (right.sum(dim=1) / masked.sum(dim=1)).mean()
        nll = (nll * masked).sum() / masked.sum()
    return {"loss": loss, "nll_per_token": nll, "accuracy": accuracy}


class MaskedGenerator(Generator):
    """What generators that fill in masked tokens have in common: they work with whole rows."""

    def position_logits(self, ids: Tensor, masked: Tensor, condition: Any, position: int) -> Tensor:
        """Logits [B, K] of the ids at one position; a family of ids implements it."""
        raise NotImplementedError

    @torch.no_grad()
    def token_log_probs(self, tokens: Tokens, condition: Any = None) -> Tensor:
        """The log-probability of every token given all the others [B, L], in nats, in L passes.

        Their sum is a pseudo-likelihood: no order of filling in gives it. Latents have none.
        """
        self.check_tokens(tokens)
        if self.continuous:
            raise VistokError(f"{self._title} draws latents by diffusion, whose likelihood it cannot tell")
        self._check_whole(tokens.ids, tokens.lengths)
        encoded = self._for_rows(self.encode_condition(condition), len(tokens))
        ids = tokens.ids.to(self.device)
        scores = torch.zeros(ids.shape, device=self.device)
        with evaluating(self):
            for position in range(self.num_tokens):
                masked = torch.zeros_like(ids, dtype=torch.bool)
                masked[:, position] = True
                logits = self.position_logits(ids, masked, encoded, position).float()
                scores[:, position] = logits.log_softmax(dim=-1).gather(-1, ids[:, position, None])[:, 0]
        return scores

    def _check_whole(self, tokens: Tensor, lengths: Tensor | None) -> None:
        if tokens.shape[1] != self.num_tokens or (lengths is not None and bool((lengths != self.num_tokens).any())):
            raise VistokError(
                f"{self._title} works with rows of all its {self.num_tokens} tokens, and here are shorter ones"
            )

    def _check_length(self, length: int) -> None:
        if length != self.num_tokens:
            raise VistokError(
                f"{self._title} fills in all its {self.num_tokens} tokens together; leave length out, got {length}"
            )

    @staticmethod
    def _for_rows(condition: Any, num_rows: int) -> Any:
        """One condition stands for all rows."""
        return condition if len(condition) == num_rows else condition[torch.zeros(num_rows, dtype=torch.int64)]
