"""Drawing from logits: temperature, filters, guidance, and noise that belongs to a row, not to a batch.

Every row has a seed of its own and draws its numbers from a generator of its own, on the CPU, so
that a row comes out the same in every batch, on every device and in any number of processes (but
for the rounding of the logits themselves). A token is drawn by inverting the cumulative
distribution: one uniform number a draw, whatever the size of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from vistok.errors import ConfigError, VistokError, nearest
from vistok.seeds import stable_seed

CfgSchedule = Literal["constant", "linear", "linear_down", "triangular", "power_cosine", "flipped_cosine"]
_SEED_LIMIT = 2**63
Self = TypeVar("Self", bound="SamplingConfig")


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn; stored with a generator's weights as its defaults.

    Attributes:
        temperature: the logits are divided by it; 0 always takes the most likely token.
        top_k: keep this many of the largest logits (and those equal to the smallest kept); 0 keeps all.
        top_p: keep the most likely tokens whose probabilities first reach this sum; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one; 0 drops none.
        cfg_scale: classifier-free guidance, null + scale * (conditional - null); 1 is off, below 0 leads away from the condition.
        cfg_schedule: how the scale goes from ``cfg_floor`` to ``cfg_scale`` in the course of generation; see ``scale_at``.
        cfg_power: of ``power_cosine`` and ``flipped_cosine``: larger ones rise later.
        cfg_start, cfg_end: outside this part of the course, in [0, 1], the scale is ``cfg_floor``.
        cfg_floor: the scale where the schedule has its zero; 1 is no guidance there.
        cfg_tokens: of generators in order: the schedule runs its course in so many tokens. 0 is all that a row can have, whatever
            length is asked for, so that a row's first tokens do not depend on how many there will be.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    cfg_scale: float = 1.0
    cfg_schedule: CfgSchedule = "constant"
    cfg_power: float = 1.0
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    cfg_floor: float = 1.0
    cfg_tokens: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0 and int(self.top_k) == self.top_k, "a whole number, 0 (off) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1 (off)"),
            "min_p": (0.0 <= self.min_p < 1.0, "from 0 (off) to below 1"),
            "cfg_scale": (math.isfinite(self.cfg_scale), "a finite number, where 1 is off"),
            "cfg_schedule": (self.cfg_schedule in get_args(CfgSchedule), f"one of {', '.join(get_args(CfgSchedule))}"),
            "cfg_power": (0.0 <= self.cfg_power < float("inf"), "0 or more"),
            "cfg_start": (0.0 <= self.cfg_start <= 1.0, "from 0 to 1"),
            "cfg_end": (self.cfg_start <= self.cfg_end <= 1.0, "from cfg_start to 1"),
            "cfg_floor": (0.0 <= self.cfg_floor < float("inf"), "0 or more"),
            "cfg_tokens": (
                self.cfg_tokens >= 0 and int(self.cfg_tokens) == self.cfg_tokens,
                "a whole number, 0 (all) or more",
            ),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise ConfigError(f"{name} is {wanted}; got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def guided(self) -> bool:
        """Whether the null condition is computed too: the scale is not 1 all along."""
        return self.cfg_scale != 1.0 or (self._scale_changes and self.cfg_floor != 1.0)

    @property
    def _scale_changes(self) -> bool:
        return self.cfg_schedule != "constant" or self.cfg_start > 0.0 or self.cfg_end < 1.0

    def scale_at(self, progress: float) -> float:
        """The guidance scale when this share of the generation is done, in [0, 1].

        ``constant`` is ``cfg_scale``; the others are ``cfg_floor + (cfg_scale - cfg_floor) * shape``,
        with the shape r for ``linear``, 1 - r for ``linear_down``, a peak in the middle for
        ``triangular``, (1 - cos(pi r^power)) / 2 for ``power_cosine`` and cos(pi r^power) / 2 for
        ``flipped_cosine``, which ends as far below the floor as it began above it, as MaskGen ships it.
        """
        if not self.cfg_start <= progress <= self.cfg_end:
            return self.cfg_floor
        wave = math.cos(math.pi * progress**self.cfg_power)
        shape = {
            "constant": 1.0,
            "linear": progress,
            "linear_down": 1.0 - progress,
            "triangular": 1.0 - abs(2.0 * progress - 1.0),
            "power_cosine": (1.0 - wave) / 2,
            "flipped_cosine": wave / 2,
        }[self.cfg_schedule]
        return self.cfg_floor + (self.cfg_scale - self.cfg_floor) * shape

    def at(self: Self, progress: float) -> Self:
        """These settings with the guidance scale of this moment, and no other."""
        if not self._scale_changes:
            return self
        constant = {"cfg_schedule": "constant", "cfg_start": 0.0, "cfg_end": 1.0, "cfg_floor": 1.0}
        return dataclasses.replace(self, cfg_scale=self.scale_at(progress), **constant)

    def updated(self: Self, **changes: Any) -> Self:
        """A copy with the changes that are not None.

        Raises:
            VistokError: a name that this way of sampling does not have, or a bad value.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise VistokError(f"sampling has no option {name!r}; {nearest(name, names)}")
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class Drawn:
    """Drawn indices and their log-probabilities, all of one shape.

    Attributes:
        indices: int64.
        log_probs: under the model's conditional distribution itself (no guidance, temperature 1, no filter).
        draw_log_probs: under the distribution that was drawn from; for greedy, the guided one at temperature 1.
    """

    indices: Tensor
    log_probs: Tensor
    draw_log_probs: Tensor


def sample_logits(
    logits: Tensor, uniforms: Tensor, sampling: SamplingConfig, *, null_logits: Tensor | None = None
) -> Drawn:
    """Guide, filter and draw.

    Args:
        logits: [..., K], the model's, under the condition.
        uniforms: [...], in [0, 1); not read when greedy.
        sampling: how to draw.
        null_logits: [..., K] under the null condition; wanted when guided.
    """
    logits = logits.float()
    guided = guide_logits(logits, null_logits, sampling)
    if not sampling.greedy:
        guided = filter_logits(guided, sampling)
    indices = guided.argmax(dim=-1) if sampling.greedy else draw(guided, uniforms)
    picked = indices[..., None]
    log_probs = logits.log_softmax(dim=-1).gather(-1, picked).squeeze(-1)
    if guided is logits:
        return Drawn(indices, log_probs, log_probs)
    return Drawn(indices, log_probs, guided.log_softmax(dim=-1).gather(-1, picked).squeeze(-1))


def sample_several(
    logits: Tensor,
    uniforms: Tensor,
    sampling: SamplingConfig,
    *,
    null_logits: Tensor | None = None,
    replacement: bool = True,
) -> Drawn:
    """Guide, filter and draw n times from the same distribution; greedy takes the n most likely, best first.

    Args:
        logits, sampling, null_logits: as in ``sample_logits``.
        uniforms: [..., n].
        replacement: whether an index can come more than once.
    Returns:
        Indices and log-probabilities [..., n]; those of the draws are under the whole distribution, also without replacement.
    Raises:
        VistokError: without replacement, fewer than n indices are left by the filters.
    """
    logits, num = logits.float(), uniforms.shape[-1]
    guided = guide_logits(logits, null_logits, sampling)
    if sampling.greedy:
        indices = guided.topk(num, dim=-1).indices
    else:
        guided = filter_logits(guided, sampling)
        if not replacement and int(guided.isfinite().sum(dim=-1).min()) < num:
            raise VistokError(f"the filters leave fewer than the {num} different tokens that are wanted; relax them")
        left, parts = guided, []
        for turn in range(num):
            parts.append(draw(left, uniforms[..., turn]))
            if not replacement:
                left = left.scatter(-1, parts[-1][..., None], float("-inf"))
        indices = torch.stack(parts, dim=-1)
    return Drawn(
        indices, logits.log_softmax(dim=-1).gather(-1, indices), guided.log_softmax(dim=-1).gather(-1, indices)
    )


def guide_logits(logits: Tensor, null_logits: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """``null + scale * (logits - null)`` where guidance is on; ``logits`` themselves where not."""
    if not sampling.guided or null_logits is None:
        return logits
    null = null_logits.float()
    # Impossible entries are -inf on both sides; their difference would be NaN.
    return torch.where(logits.isneginf(), logits, null + sampling.cfg_scale * (logits - null))


def filter_logits(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Divide by the temperature, then apply top-k, top-p and min-p in this order; dropped logits become -inf.

    The most likely token always stays. Under greedy sampling the temperature is left out.
    """
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if sampling.top_p < 1.0:
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = probs.cumsum(dim=-1) - probs  # the token that crosses top_p is kept
        drop = before >= sampling.top_p
        drop[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    if sampling.min_p > 0.0:
        probs = logits.softmax(dim=-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.amax(dim=-1, keepdim=True), float("-inf"))
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Indices [...] distributed as softmax(logits [..., K]), by inverting the cumulative distribution.

    An index of probability 0 is never drawn.
    """
    probs = logits.float().softmax(dim=-1)
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Rounding may bring u * total up to total, which would point behind the last index.
    wanted = torch.minimum(uniforms[..., None].to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    indices = torch.searchsorted(cumulative.contiguous(), wanted.contiguous(), right=True)
    # A parallel prefix sum need not be monotone to the last bit, so a neighbour of probability 0 can be hit.
    possible = probs.gather(-1, indices) > 0
    return torch.where(possible, indices, probs.argmax(dim=-1, keepdim=True)).squeeze(-1)


def row_seeds(
    num_rows: int, seeds: int | Sequence[int] | Tensor | None = None, generator: torch.Generator | None = None
) -> list[int]:
    """One seed a row.

    Args:
        num_rows: how many.
        seeds: one for each row; or one number, of which row i gets ``stable_seed(seeds, i)``.
        generator: draws the seeds where none are given; None is torch's global generator.
    Raises:
        VistokError: both are given, or their number is wrong.
    """
    if seeds is None:
        device = generator.device if generator is not None else "cpu"
        return torch.randint(_SEED_LIMIT - 1, (num_rows,), generator=generator, device=device).tolist()
    if generator is not None:
        raise VistokError("give either seeds (one a row) or a generator, not both")
    if isinstance(seeds, Tensor):
        seeds = seeds.tolist()
    if isinstance(seeds, int):
        return [stable_seed(seeds, row) for row in range(num_rows)]
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != num_rows:
        raise VistokError(f"{num_rows} rows want {num_rows} seeds, got {len(seeds)}")
    if seeds and not -_SEED_LIMIT <= min(seeds) <= max(seeds) < 2 * _SEED_LIMIT:
        raise VistokError(f"a seed is a 64-bit number, got {min(seeds)} to {max(seeds)}")
    return seeds


def row_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B, *shape] on the CPU; row b is a function of ``seeds[b]`` only."""
    noise = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for row, seed in enumerate(seeds):
        generator.manual_seed(seed)
        torch.rand(*shape, generator=generator, out=noise[row])
    return noise


def row_normals(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Numbers of N(0, 1), float32 [B, *shape] on the CPU; row b is a function of ``seeds[b]``, and has nothing of its ``row_noise``."""
    noise = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for row, seed in enumerate(seeds):
        generator.manual_seed(stable_seed(seed, "normal"))
        torch.randn(*shape, generator=generator, out=noise[row])
    return noise


def uniform_of(labels: Tensor, sample_seeds: Tensor | None) -> Tensor:
    """Numbers in [0, 1), one for each of ``labels``: a hash of its seed where seeds are given, else torch's global draw.

    For what training draws for a row, as whether its class is hidden: the same whatever the batch is.
    """
    return uniforms_of(labels.flatten(), 1, sample_seeds)[:, 0].view(labels.shape)


def uniforms_of(rows: Tensor, count: int, sample_seeds: Tensor | None) -> Tensor:
    """``uniform_of`` for ``count`` numbers a row: float64 [B, count] (float32 where no seeds are given); the first is its."""
    if sample_seeds is None:
        return torch.rand(len(rows), count, device=rows.device)
    # splitmix64: a counter, then two rounds of multiply and shift; int64 arithmetic wraps around, as wanted.
    counter = sample_seeds.flatten()[:, None] + torch.arange(count, device=sample_seeds.device)
    mixed = counter * -7046029254386353131
    for multiplier in (-4658895280553007687, -7723592293110705685):
        mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * multiplier
    return ((mixed >> 11) & 0x1FFFFFFFFFFFFF).double() / 2.0**53
