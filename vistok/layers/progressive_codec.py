"""Principal components as digits, the most telling digit first: an embedded linear code of images.

``LinearCodec`` gives every component one digit. Here a component of much variance gets a second and a third, each a
finer division of what the one before left open, and the digits of all components stand in one order, by how much squared
error each takes away. Levels are where the training images want them (Lloyd, 1982), not evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIT_ITERATIONS = 4
_LLOYD_ITERATIONS = 25
_STAGES = 3


class ProgressiveCodec(nn.Module):
    """Images to digits in order of use, as latents whose evenly spaced levels in [-1, 1] stand for the fitted ones.

    Frozen: maps are buffers, saved with the weights. Token t holds digits t*C .. (t+1)*C - 1. A later digit of a component
    refines what the earlier ones say *after rounding*, so latents are to be rounded as they come.

    The components live in the low frequencies of an opponent colour space: fewer numbers to keep, and little that a code
    of this size could say is lost.

    Args:
        image_size: pixels a side.
        num_tokens: N.
        code_dim: C, digits a token.
        levels: of every digit.
    """

    def __init__(self, image_size: int, num_tokens: int, code_dim: int, levels: int) -> None:
        super().__init__()
        self.image_size, self.num_tokens, self.code_dim, self.levels = image_size, num_tokens, code_dim, levels
        self.luma, self.chroma = (image_size * 5 + 7) // 8, (image_size * 5 + 15) // 16
        values, digits = self.luma**2 + 2 * self.chroma**2, num_tokens * code_dim
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(min(digits, values), values))  # orthonormal rows
        self.register_buffer("component", torch.zeros(digits, dtype=torch.int32))  # of each digit
        self.register_buffer("table", torch.zeros(digits, levels))  # ascending values of each digit's levels
        self.register_buffer("_waves", _cosines(image_size), persistent=False)
        self.register_buffer("_colours", _opponents(), persistent=False)

    @torch.no_grad()
    def fit(self, images: Tensor, *, seed: int = 0) -> None:
        """Fit to images [M, 3, H, W] in [0, 1]; M may be smaller than the number of components."""
        points = self._analyse(images.float())
        rank = min(len(self.basis), *points.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mean = points.mean(dim=0)
            _, _, vectors = torch.svd_lowrank(points - mean, q=rank, niter=_FIT_ITERATIONS)
        left = (points - mean) @ vectors  # [M, rank]: what the digits so far leave open
        gains, tables = [], []
        for _ in range(_STAGES):
            table = _lloyd(left, self.levels)
            rest = left - _nearest(left, table)
            gains.append(left.square().mean(dim=0) - rest.square().mean(dim=0))
            tables.append(table.t())
            left = rest
        for stage in range(1, _STAGES):  # a digit never stands before the one that it refines
            gains[stage] = torch.minimum(gains[stage], gains[stage - 1])
        order = torch.cat(gains).argsort(descending=True, stable=True)[: len(self.component)]
        self.mean.copy_(mean)
        self.basis.zero_()[:rank] = vectors.t()
        self.component.zero_()[: len(order)] = (order % rank).int()
        self.table.zero_()[: len(order)] = torch.cat(tables)[order]

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, C], within [-1, 1]."""
        return self._digits(self._coefficients(images))[0].unflatten(1, (self.num_tokens, self.code_dim))

    def decode(self, latents: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """The first L tokens [B, L, C], or those of them that are ``kept`` ([B, L], 1 or 0) -> [B, 3, H, W]."""
        flat = latents.flatten(1)
        count = flat.shape[1]
        values = _interpolate(flat, self._grid(flat), self.table[:count].to(flat.dtype))
        if kept is not None:
            values = values * kept.to(values.dtype).repeat_interleave(self.code_dim, dim=1)
        coefficients = values.new_zeros(len(flat), len(self.basis))
        coefficients = coefficients.index_add(1, self.component[:count].long(), values)
        return self._synthesise(self.mean + coefficients @ self.basis)

    def prefix_errors(self, images: Tensor, *, quantise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Root mean square errors of [B, 3, H, W] decoded from their first 0, 1, ..., N tokens: [B, N + 1].

        Args:
            images: float RGB.
            quantise: for the interface of ``LinearCodec``; the digits here are always rounded.
        """
        del quantise
        _, gained = self._digits(self._coefficients(images))
        gained = gained.unflatten(1, (self.num_tokens, self.code_dim)).sum(dim=-1)
        centre = self._synthesise(self.mean[None])
        left = (images - centre).square().flatten(1).sum(dim=1, keepdim=True) - F.pad(gained, (1, 0)).cumsum(dim=1)
        return (left.clamp_min(0.0) / images[0].numel()).sqrt()

    def _coefficients(self, images: Tensor) -> Tensor:
        return (self._analyse(images) - self.mean) @ self.basis.t()

    def _digits(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R] -> latents [B, D] before rounding, and the squared error that each rounded digit takes away."""
        left, latents, gained = coefficients.clone(), [], []
        component = self.component.long()
        stage = _occurrence(component)
        order = torch.zeros_like(component)
        for number in range(int(stage.max()) + 1):
            chosen = (stage == number).nonzero()[:, 0]
            order[chosen] = torch.arange(len(chosen), device=chosen.device) + sum(part.shape[1] for part in latents)
            table, before = self.table[chosen].to(left.dtype), left[:, component[chosen]]
            values = _nearest(before, table.t())
            after = before - values
            latents.append(_interpolate(before, table, self._grid(before).expand_as(table)))
            gained.append(before.square() - after.square())
            left = left.index_copy(1, component[chosen], after)
        return torch.cat(latents, dim=1)[:, order], torch.cat(gained, dim=1)[:, order]

    def _grid(self, like: Tensor) -> Tensor:
        return torch.linspace(-1.0, 1.0, self.levels, device=like.device, dtype=like.dtype)

    def _analyse(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, V]: low frequencies of lightness and of two opponent colours, an orthonormal projection."""
        waves = self._waves.to(images.dtype)
        planes = torch.einsum("oc,bchw->bohw", self._colours.to(images.dtype), images)
        planes = waves[: self.luma] @ planes @ waves[: self.luma].t()
        light, colour = planes[:, :1], planes[:, 1:, : self.chroma, : self.chroma]
        return torch.cat([light.flatten(1), colour.flatten(1)], dim=1)

    def _synthesise(self, points: Tensor) -> Tensor:
        waves = self._waves.to(points.dtype)
        light, colour = points.split([self.luma**2, 2 * self.chroma**2], dim=1)
        light = light.view(-1, 1, self.luma, self.luma)
        colour = colour.view(-1, 2, self.chroma, self.chroma)
        light = waves[: self.luma].t() @ light @ waves[: self.luma]
        colour = waves[: self.chroma].t() @ colour @ waves[: self.chroma]
        return torch.einsum("oc,bohw->bchw", self._colours.to(points.dtype), torch.cat([light, colour], dim=1))


def _cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (II), one frequency a row."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    waves = torch.cos(math.pi * torch.arange(size, dtype=torch.float64)[:, None] * places) * (2.0 / size) ** 0.5
    waves[0] /= 2.0**0.5
    return waves.float()


def _opponents() -> Tensor:
    """Lightness, red against blue, green against both: orthonormal rows."""
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
    return F.normalize(rows, dim=1)


def _lloyd(values: Tensor, levels: int) -> Tensor:
    """The ``levels`` values of least squared error for every column of [M, K]: [levels, K], ascending."""
    table = torch.quantile(values, (torch.arange(levels, device=values.device) + 0.5) / levels, dim=0)
    for _ in range(_LLOYD_ITERATIONS):
        bounds = (table[1:] + table[:-1]) / 2
        places = (values[None] > bounds[:, None]).sum(dim=0)
        counts = torch.zeros_like(table).scatter_add_(0, places, torch.ones_like(values))
        sums = torch.zeros_like(table).scatter_add_(0, places, values)
        table = torch.where(counts > 0, sums / counts.clamp_min(1.0), table)
    return table.sort(dim=0).values


def _nearest(values: Tensor, table: Tensor) -> Tensor:
    """[M, K] -> the nearest of each column's levels [levels, K]."""
    places = (values[None] > ((table[1:] + table[:-1]) / 2)[:, None]).sum(dim=0)
    return table.gather(0, places)


def _interpolate(values: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """[M, K], of the scale of levels ``given`` ([K, levels] or [levels]) -> of ``wanted``, linearly between levels."""
    low, width = given[..., :-1], given.diff(dim=-1).clamp_min(1e-12)
    share = ((values[..., None] - low) / width).clamp(0.0, 1.0)
    return wanted[..., 0] + (share * wanted.diff(dim=-1)).sum(dim=-1)


def _occurrence(values: Tensor) -> Tensor:
    """How often the value of each place [D] has come before."""
    same = values[:, None] == values[None]
    return same.tril(-1).sum(dim=1)
