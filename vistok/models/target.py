"""The fewest tokens of each image that reach a quality: bisection over prefixes, all images of a batch at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistok.errors import CheckpointError, MissingExtraError, VistokError, nearest
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

logger = logging.getLogger(__name__)

Metric = Callable[[Tensor, Tensor], Tensor]
_HIGHER_IS_BETTER = {"psnr": True, "mae": False, "lpips": False, "lite0": False}


@dataclass(frozen=True)
class Target:
    """A quality to reach.

    Attributes:
        metric: ``psnr`` (dB), ``mae`` (mean absolute error), ``lpips`` (VGG16; its weights must be on this machine or to be had), ``lite0`` (a distance
            of EfficientNet-lite0 features, which is not LPIPS), or a function of decoded images and originals
            [B, 3, H, W], float in [0, 1], to a value an image [B] that depends on that image alone.
        value: what is to be reached.
        higher_is_better: of a function; of named metrics it is known.
    Raises:
        VistokError: unknown name, a value that is not finite, or a function without ``higher_is_better``.
    """

    metric: str | Metric
    value: float
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            raise VistokError(f"a target is a finite number, as in target=('psnr', 24.0), got {self.value!r}")
        if isinstance(self.metric, str):
            if self.metric not in _HIGHER_IS_BETTER:
                raise VistokError(
                    f"unknown metric {self.metric!r} of a target; {nearest(self.metric, _HIGHER_IS_BETTER)}"
                )
            known = _HIGHER_IS_BETTER[self.metric]
            if self.higher_is_better not in (None, known):
                raise VistokError(f"{self.metric} is a metric of which {'more' if known else 'less'} is better")
            object.__setattr__(self, "higher_is_better", known)
        elif not callable(self.metric) or self.higher_is_better is None:
            raise VistokError(
                "the metric of a target is psnr, mae, lpips, lite0, or a function, which is given as "
                f"Target(function, value, higher_is_better=...); got {self.metric!r}"
            )

    @classmethod
    def parse(cls, target: Target | tuple[str, float] | str) -> Target:
        """A target out of ``("psnr", 24.0)`` or ``"psnr=24"``; a Target stays as it is."""
        if isinstance(target, cls):
            return target
        if isinstance(target, str):
            name, equals, text = target.partition("=")
            try:
                return cls(name.strip(), float(text))
            except ValueError as error:
                if equals and isinstance(error, VistokError):
                    raise
                raise VistokError(f"a target is written as psnr=24 or lpips=0.2, got {target!r}") from error
        if not isinstance(target, (tuple, list)) or len(target) != 2:
            raise VistokError(f"a target is a pair as ('psnr', 24.0), or a Target, got {target!r}")
        return cls(*target)

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "the metric")

    def reached(self, values: Tensor) -> Tensor:
        """bool [B]: whether values [B] are good enough; NaN is not."""
        return values >= self.value if self.higher_is_better else values <= self.value


@dataclass(frozen=True)
class FoundLengths:
    """What a search for a target found.

    Attributes:
        lengths: int64 [B]; all tokens of an image that does not reach the target.
        values: float64 [B], the metric at these lengths.
        reached: bool [B].
        decodes: how many times the batch was decoded.
    """

    lengths: Tensor
    values: Tensor
    reached: Tensor
    decodes: int


@torch.no_grad()
def find_lengths(
    tokenizer: Tokenizer,
    images: Tensor,
    tokens: Tokens,
    target: Target | tuple[str, float],
    *,
    decode_options: Mapping[str, Any] | None = None,
) -> FoundLengths:
    """How many leading tokens of each image reach a target.

    Bisection keeps two lengths of each image: one that was seen to fall short, and one that was seen to reach the
    target, beginning with all tokens. It ends when they are neighbours, after at most 1 + log2(N) decodings of
    the batch. So what is returned was measured to reach the target and one token fewer to miss it; where
    quality does not grow with every token, an even shorter prefix may reach it, too. An image whose
    tokens all together miss the target keeps them all and is not ``reached``. Images do not influence each other.

    Quality is that of the decoded images, clamped to [0, 1] and not rounded to 8 bits.

    Args:
        tokenizer: an ordered one.
        images: float RGB in [0, 1], [B, 3, H, W].
        tokens: of these images, uncut.
        target: see ``Target``.
        decode_options: keyword arguments of ``tokenizer.decode``. The search compares decodings of one image, so
            these must not draw anew: give ``noise`` or ``seed``, not a generator.
    Raises:
        VistokError: a tokenizer without order, a generator among the options, decoded values that are not finite.
        CheckpointError: the metric's weights are not to be had.
    """
    target = Target.parse(target)
    options = dict(decode_options or {})
    name = tokenizer.name or tokenizer.family
    if not tokenizer.ordered:
        raise VistokError(
            f"{name} has no order of tokens, so no part of them can reach a target; ordered tokenizers can"
        )
    if any(isinstance(value, torch.Generator) for value in options.values()):
        raise VistokError(
            "the search for a target decodes an image several times and compares, so a generator, which draws anew each "
            "time, cannot be among decode_options; give noise= or seed="
        )
    metric = _metric(target, images.device)
    full = tokens.lengths.cpu()
    originals = images.float().clamp(0.0, 1.0)

    def measure(lengths: Tensor) -> Tensor:
        decoded = tokenizer.decode(tokens.truncate(lengths), **options).to(originals.device).float()
        if not decoded.isfinite().all():
            raise VistokError(f"{name} decodes NaN or infinity; look at its weights")
        return metric(decoded.clamp(0.0, 1.0), originals).detach().cpu().double()

    values = measure(full)
    reached = target.reached(values)
    short, enough = torch.zeros_like(full), full.clone()
    decodes = 1
    open_rows = reached & (enough - short > 1)
    while open_rows.any():
        # Rows that are done are decoded along, at a length already known: the batch stays one batch.
        middle = torch.where(open_rows, (short + enough) // 2, enough)
        found = measure(middle)
        decodes += 1
        good = target.reached(found) & open_rows
        values = torch.where(good, found, values)
        enough = torch.where(good, middle, enough)
        short = torch.where(open_rows & ~good, middle, short)
        open_rows = reached & (enough - short > 1)
    return FoundLengths(enough, values, reached, decodes)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB of each pair of images [B, 3, H, W] in [0, 1] for a peak of 1: float64 [B], infinite for equal ones."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return -10.0 * (x.to(dtype) - y.to(dtype)).square().mean(dim=(1, 2, 3)).log10()


def mean_absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """Of each pair of images [B, 3, H, W]: float64 [B] (float32 on devices that have no more)."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return (x.to(dtype) - y.to(dtype)).abs().mean(dim=(1, 2, 3))


def _metric(target: Target, device: torch.device) -> Metric:
    if callable(target.metric):
        return target.metric
    own = {"psnr": psnr, "mae": mean_absolute_error}
    return own[target.metric] if target.metric in own else _network(target.metric, str(device))


@lru_cache(maxsize=2)
def _network(name: str, device: str) -> Metric:
    """A metric's network, kept: a data set is encoded in many batches."""
    if name == "lite0":
        from vistok.losses.lite0_distance import Lite0Distance

        return Lite0Distance().to(device)
    from vistok.losses.perceptual import LPIPS

    try:
        return LPIPS.pretrained().to(device)
    except (CheckpointError, MissingExtraError) as error:
        raise CheckpointError(
            f"the target lpips needs LPIPS's weights: {error}. Without a network, target=('lite0', ...) is a stand-in by "
            "its own name, and a Target takes any function"
        ) from error
