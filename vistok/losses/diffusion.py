"""Denoising diffusion of single tokens: cosine schedule, predicted noise, learned variance, ancestral sampling.

Papers: DDPM (arXiv:2006.11239), Improved DDPM (arXiv:2102.09672), as a loss of tokens in MAR (arXiv:2406.11838).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor

from vistok.errors import ConfigError

_MAX_BETA = 0.999
_OFFSET = 0.008  # keeps the first steps' noise above what pixels resolve
_BIN = 1.0 / 255.0  # half the width of a value of 8 bits in [-1, 1], which the last step's likelihood counts in
_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class ReverseStep:
    """The distribution of one step back, each [M, C]: its mean and log-variance, and the clean token it points to."""

    mean: Tensor
    log_variance: Tensor
    clean: Tensor


class GaussianDiffusion:
    """A diffusion process in ``num_steps`` steps, or in a few of them.

    A network's output [M, 2C] for it is the noise in the token, then the place of its log-variance
    between the smallest sensible one (-1: of the true posterior) and the largest (1: of the step).

    Args:
        num_steps: of the process that is learned.
        timesteps: the steps that are kept, rising; None keeps all.

    Attributes:
        timesteps: int64 [S], what the network reads at each kept step.
    """

    def __init__(self, num_steps: int = 1000, *, timesteps: Sequence[int] | None = None) -> None:
        self.num_steps = num_steps
        kept = range(num_steps) if timesteps is None else timesteps
        if len(kept) < 2:
            raise ConfigError(f"a diffusion process has at least two steps, got {len(kept)}")
        self.timesteps = torch.tensor(list(kept))
        edges = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        course = torch.cos((edges + _OFFSET) / (1.0 + _OFFSET) * math.pi / 2).square()
        betas = (1.0 - course[1:] / course[:-1]).clamp_max(_MAX_BETA)
        # The kept steps are a process of their own, through the same noise levels.
        levels = (1.0 - betas).cumprod(0)[self.timesteps]
        before = torch.cat([levels.new_ones(1), levels[:-1]])
        alphas = levels / before
        variances = (1.0 - alphas) * (1.0 - before) / (1.0 - levels)
        self.levels = levels  # the share of the clean token's variance, [S]
        tables = {
            "signal": levels.sqrt(),
            "noise": (1.0 - levels).sqrt(),
            "from_noisy": (1.0 / levels).sqrt(),
            "from_noise": (1.0 / levels - 1.0).sqrt(),
            "mean_clean": (1.0 - alphas) * before.sqrt() / (1.0 - levels),
            "mean_noisy": (1.0 - before) * alphas.sqrt() / (1.0 - levels),
            # The first step's posterior has no variance: it takes the second's.
            "min_log_variance": torch.cat([variances[1:2], variances[1:]]).log(),
            "max_log_variance": (1.0 - alphas).log(),
        }
        self._tables = {name: table.float() for name, table in tables.items()}

    def respaced(self, num: int) -> GaussianDiffusion:
        """The process in ``num`` of the steps, evenly spaced from the first to the last."""
        if not 2 <= num <= self.num_steps:
            raise ConfigError(f"sampling takes 2 to {self.num_steps} diffusion steps, got {num}")
        # Published models add the stride up, so that its rounding decides where a step falls between two.
        stride = (self.num_steps - 1) / (num - 1)
        places = accumulate(repeat(stride, num - 1), initial=0.0)
        return GaussianDiffusion(self.num_steps, timesteps=[round(place) for place in places])

    def add_noise(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Clean tokens [M, C] with noise [M, C] at steps [M]."""
        return self._at("signal", steps, clean) * clean + self._at("noise", steps, clean) * noise

    def reverse(self, output: Tensor, noisy: Tensor, steps: Tensor, *, clip_denoised: float = 0.0) -> ReverseStep:
        """The step back from noisy tokens [M, C] at steps [M], by the network's output [M, 2C].

        ``clip_denoised`` above 0 cuts the values of the clean token that it points to: where there is next to no signal, small errors
        of the noise make it anything.
        """
        noise, place = output.float().chunk(2, dim=-1)
        clean = self._at("from_noisy", steps, noisy) * noisy - self._at("from_noise", steps, noisy) * noise
        if clip_denoised:
            clean = clean.clamp(-clip_denoised, clip_denoised)
        share = (place + 1) / 2
        high, low = self._at("max_log_variance", steps, noisy), self._at("min_log_variance", steps, noisy)
        return ReverseStep(self._posterior_mean(clean, noisy, steps), share * high + (1 - share) * low, clean)

    def losses(self, output: Tensor, clean: Tensor, noise: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """What a network's output for noisy tokens costs, [M].

        The squared error of the noise, and the variational bound in bits a channel, which trains the
        variance alone (Improved DDPM, section 3.1, without its weight).
        """
        output = output.float()
        predicted, place = output.chunk(2, dim=-1)
        error = (noise - predicted).square().mean(dim=-1)
        guess = self.reverse(torch.cat([predicted.detach(), place], dim=-1), noisy, steps)
        mean, log_variance = self._posterior_mean(clean, noisy, steps), self._at("min_log_variance", steps, noisy)
        divergence = 0.5 * (
            guess.log_variance
            - log_variance
            + torch.exp(log_variance - guess.log_variance)
            + (mean - guess.mean).square() * torch.exp(-guess.log_variance)
            - 1.0
        )
        surprise = -_binned_log_prob(clean, guess.mean, 0.5 * guess.log_variance)
        bound = torch.where((steps == 0)[:, None], surprise, divergence).mean(dim=-1) / math.log(2)
        return error + bound

    def sample(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        temperature: float = 1.0,
        clip_denoised: float = 0.0,
    ) -> Tensor:
        """Tokens [M, C] from noise, step by step.

        Args:
            network: (noisy [M, C], timesteps [M]) -> [M, 2C].
            noise: normal numbers [S, M, C]: where to begin, then one for every step but the last, which adds none.
            temperature: what the steps' noise is multiplied with.
            clip_denoised: see ``reverse``.
        """
        x = noise[0]
        for turn, step in enumerate(range(len(self.timesteps) - 1, -1, -1)):
            steps = torch.full((len(x),), step, device=x.device)
            output = network(x, self.timesteps.to(x.device)[steps])
            result = self.reverse(output, x, steps, clip_denoised=clip_denoised)
            x = result.mean
            if step:
                x = x + temperature * torch.exp(0.5 * result.log_variance) * noise[turn + 1]
        return x

    def _posterior_mean(self, clean: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        return self._at("mean_clean", steps, clean) * clean + self._at("mean_noisy", steps, noisy) * noisy

    def _at(self, name: str, steps: Tensor, like: Tensor) -> Tensor:
        """A table's entries at steps [M], fp32 [M, 1]."""
        if self._tables[name].device != like.device:
            self._tables = {key: table.to(like.device) for key, table in self._tables.items()}
        return self._tables[name][steps][:, None]


def _binned_log_prob(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The log-probability of 8-bit values in [-1, 1] under a Gaussian cut into their bins; the outer bins are open."""
    scale = torch.exp(-log_std)
    above, below = ((value - mean + edge) * scale for edge in (_BIN, -_BIN))
    upper, lower = _normal_cdf(above), _normal_cdf(below)
    log = [part.clamp_min(_MIN_PROBABILITY).log() for part in (upper, 1.0 - lower, upper - lower)]
    return torch.where(value < -0.999, log[0], torch.where(value > 0.999, log[1], log[2]))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation, which the published loss is made of."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))
