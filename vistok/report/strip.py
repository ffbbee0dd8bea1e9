"""Coarse to fine: an image a row, decoded from 1, 2, 4, ... tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vistok.metrics.curve import default_lengths
from vistok.metrics.pixel import psnr
from vistok.report.grid import image_grid
from vistok.token_layout import TokenLayout

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer


@torch.no_grad()
def length_strip(
    tokenizer: Tokenizer,
    images: Tensor,
    *,
    lengths: Sequence[int] | None = None,
    names: Sequence[str] = (),
    condition: Any = None,
    decode_options: Mapping[str, Any] | None = None,
    show_bytes: bool = True,
) -> Image.Image:
    """Originals beside what more and more of their tokens give, with PSNR below and tokens and stored bytes above.

    Args:
        tokenizer: one that is not ordered gives one column.
        images: float RGB in [0, 1], [B, 3, H, W], few.
        lengths: token counts; None takes 1, 2, 4, ... and all.
        names: of the images, left of them.
        condition: what a conditional tokenizer decodes with.
        decode_options: keyword arguments of ``decode``.
        show_bytes: name the bytes of an image in a ``.vtk`` file, too.
    Raises:
        VistokError: a length that the tokenizer does not have.
    """
    lengths = list(lengths or default_lengths(tokenizer))
    tokens = tokenizer.encode(images, length=max(lengths))
    sizes = TokenLayout.of(tokens).record_bytes(lengths)
    columns = []
    for length in lengths:
        decoded = tokenizer.decode(tokens.truncate(length), condition=condition, **(decode_options or {}))
        columns.append(decoded.float().clamp(0.0, 1.0).cpu())
    originals = images.detach().float().clamp(0.0, 1.0).cpu()
    values = [psnr(column, originals).tolist() for column in columns]
    rows = [[*(column[row] for column in columns), originals[row]] for row in range(len(images))]
    captions = [[*(f"{value[row]:.1f} dB" for value in values), ""] for row in range(len(images))]
    titles = [
        f"{length} ({size} B)" if show_bytes else f"{length} token{'s' if length > 1 else ''}"
        for length, size in zip(lengths, sizes, strict=True)
    ]
    return image_grid(rows, column_titles=[*titles, "original"], row_titles=list(names), captions=captions)
