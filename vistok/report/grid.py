"""Pictures out of image tensors: single ones, and captioned grids that go into papers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vistok.data.transforms import to_uint8

_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_GAP = 4
# Small pictures are enlarged by whole factors to about this many pixels a side, so that captions fit.
_COMFORTABLE = 128


def to_image(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as an 8-bit picture."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def save_image(image: Tensor | Image.Image, path: str | Path) -> None:
    """Write one picture ([3, H, W] in [0, 1], or Pillow's) in the format of the path's suffix, whole or not at all."""
    path = Path(path)
    image = to_image(image) if isinstance(image, Tensor) else image
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        image.save(temporary)
        os.replace(temporary, path)
    except ValueError as error:
        raise OSError(f"{path} cannot be written as a picture: {error}; name it .png") from error
    finally:
        temporary.unlink(missing_ok=True)


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    *,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    scale: int | None = None,
) -> Image.Image:
    """A table of pictures.

    Args:
        rows: of images [3, H, W] in [0, 1], all of one size.
        column_titles: above the columns; row_titles: left of the rows; captions: below each picture.
        scale: whole factor of enlargement (pixels stay square); None chooses for legibility.
    """
    height, width = rows[0][0].shape[1:]
    scale = scale or max(1, _COMFORTABLE // max(height, width))
    height, width = height * scale, width * scale
    font = ImageFont.load_default(size=max(11, min(22, width // 9)))
    line = int(font.size * 1.5)
    left = int(max((font.getlength(title) for title in row_titles), default=-2 * _GAP)) + 2 * _GAP
    top = line if column_titles else 0
    below = line if captions else 0
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (left + columns * (width + _GAP), top + len(rows) * (height + below + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles):
        draw.text((left + column * (width + _GAP) + width // 2, top // 2), title, fill=_INK, font=font, anchor="mm")
    for number, row in enumerate(rows):
        y = top + number * (height + below + _GAP)
        if number < len(row_titles):
            draw.text((left - _GAP, y + height // 2), row_titles[number], fill=_INK, font=font, anchor="rm")
        for column, image in enumerate(row):
            x = left + column * (width + _GAP)
            sheet.paste(to_image(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
            if captions:
                text = captions[number][column]
                draw.text((x + width // 2, y + height + below // 2), text, fill=_INK, font=font, anchor="mm")
    return sheet
