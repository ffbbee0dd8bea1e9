"""Originals beside reconstructions at several lengths: the picture that shows what a tokenizer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vistok.errors import VistokError
from vistok.metrics.pixel import psnr
from vistok.report.grid import image_grid

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer


def default_lengths(tokenizer: Tokenizer) -> list[int]:
    """1, 4, 16, ... and all tokens where the tokens are ordered; else all."""
    if not tokenizer.ordered:
        return [tokenizer.num_tokens]
    return sorted({length for length in (1, 4, 16, 64, 256) if length < tokenizer.num_tokens} | {tokenizer.num_tokens})


def reconstruct(
    tokenizer: Tokenizer,
    images: Tensor,
    lengths: Sequence[int] | None = None,
    *,
    condition: Any = None,
    batch_size: int = 16,
) -> dict[int, Tensor]:
    """Reconstructions [B, 3, H, W] by number of leading tokens.

    Raises:
        VistokError: a length that the tokenizer cannot decode.
    """
    lengths = list(lengths or default_lengths(tokenizer))
    for length in lengths:
        if not 1 <= length <= tokenizer.num_tokens or (length < tokenizer.num_tokens and not tokenizer.ordered):
            raise VistokError(
                f"{tokenizer.name or tokenizer.family} cannot decode {length} tokens: it "
                + (
                    f"takes 1 to {tokenizer.num_tokens}"
                    if tokenizer.ordered
                    else f"always takes {tokenizer.num_tokens}"
                )
            )
    parts: dict[int, list[Tensor]] = {length: [] for length in lengths}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        tokens = tokenizer.encode(batch)
        text = None if condition is None else condition[start : start + batch_size]
        for length in lengths:
            parts[length].append(tokenizer.decode(tokens.truncate(length), condition=text).cpu())
    return {length: torch.cat(part) for length, part in parts.items()}


def reconstruction_grid(
    tokenizer: Tokenizer,
    images: Tensor,
    *,
    lengths: Sequence[int] | None = None,
    names: Sequence[str] = (),
    condition: Any = None,
    batch_size: int = 16,
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A row an image: the original, then its reconstructions with their PSNR below.

    Returns:
        the picture, and for every image its ``name`` and ``psnr`` by length.
    """
    decoded = reconstruct(tokenizer, images, lengths, condition=condition, batch_size=batch_size)
    values = {length: psnr(part, images.cpu()) for length, part in decoded.items()}
    rows = [[images[row].cpu(), *(part[row] for part in decoded.values())] for row in range(len(images))]
    captions = [["", *(f"{value[row]:.1f} dB" for value in values.values())] for row in range(len(images))]
    titles = ["original", *(f"{length} token{'s' if length > 1 else ''}" for length in decoded)]
    facts = [
        {
            "name": names[row] if names else str(row),
            "psnr": {length: float(value[row]) for length, value in values.items()},
        }
        for row in range(len(images))
    ]
    return image_grid(rows, column_titles=titles, captions=captions), facts
