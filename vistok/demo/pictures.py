"""The pictures that explain ordered tokens, made from any models: the demo and the gallery show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vistok.generate.base import Generator
from vistok.metrics.pixel import psnr
from vistok.models.base import Tokenizer
from vistok.report.grid import image_grid
from vistok.report.strip import length_strip
from vistok.report.trajectory import search_trajectory
from vistok.search import SearchResult, search

LENGTHS = (1, 4, 16, 64, 256)
ERRORS = (0.2, 0.1, 0.05)


def coarse_to_fine(tokenizer: Tokenizer, images: Tensor) -> Image.Image:
    """Images [B, 3, H, W], a row each: from 1, 4, 16, ... tokens, and the original."""
    lengths = [length for length in LENGTHS if length < tokenizer.num_tokens]
    return length_strip(tokenizer, images, lengths=[*lengths, tokenizer.num_tokens])


@dataclass(frozen=True)
class Counts:
    """How many tokens pictures were given.

    Attributes:
        picture: a row for each picture, the simplest first, a column for each wanted error.
        tokens: int64 [E, B], in the order that the pictures came in.
        psnr: float [E, B], dB.
    """

    picture: Image.Image
    tokens: Tensor
    psnr: Tensor


@torch.no_grad()
def tokens_needed(tokenizer: Tokenizer, images: Tensor, errors: Sequence[float] = ERRORS) -> Counts:
    """What an adaptive tokenizer makes of images [B, 3, H, W] when it is asked for smaller and smaller errors."""
    columns, counts, qualities = [], [], []
    for error in errors:
        tokens = tokenizer.encode(images, target_error=error)
        columns.append(tokenizer.decode(tokens).clamp(0.0, 1.0))
        counts.append(tokens.lengths)
        qualities.append(psnr(columns[-1], images))
    tokens, quality = torch.stack(counts), torch.stack(qualities)
    order = tokens.sum(dim=0).argsort(stable=True).tolist()
    rows = [[*(column[index] for column in columns), images[index]] for index in order]
    captions = [
        [*(f"{count} tokens, {value:.1f} dB" for count, value in zip(tokens[:, i], quality[:, i], strict=True)), ""]
        for i in order
    ]
    titles = [*(f"error {error:g}" for error in errors), "original"]
    return Counts(image_grid(rows, column_titles=titles, captions=captions), tokens, quality)


def searched(
    generator: Generator, tokenizer: Tokenizer, prompts: Sequence[str], budgets: Sequence[int], *, seed: int = 0
) -> tuple[Image.Image, dict[int, SearchResult]]:
    """Prompts, a column each, from the first draw down to the likeliest of more and more draws of the same seeds."""
    seeds = [seed + number for number in range(len(prompts))]
    found = {budget: search(generator, tokenizer, list(prompts), budget=budget, seeds=seeds) for budget in budgets}
    titles = ["one draw" if budget == 1 else f"best of {budget}" for budget in budgets]
    rows = [list(result.images) for result in found.values()]
    captions = [[""] * len(prompts)] * (len(rows) - 1) + [list(prompts)]
    return image_grid(rows, row_titles=titles, captions=captions, scale=2), found


def beams(
    generator: Generator, tokenizer: Tokenizer, prompts: Sequence[str], *, seed: int = 0
) -> tuple[Image.Image, SearchResult]:
    """Beam search, a prompt a row: what was best at 1, 2, 4, ... tokens; log-likelihoods below."""
    seeds = [seed + number for number in range(len(prompts))]
    result = search(
        generator, tokenizer, list(prompts), method="beam", beam_width=4, candidates_per_beam=4, seeds=seeds
    )
    return search_trajectory(tokenizer, result, names=list(prompts), seeds=seeds), result
