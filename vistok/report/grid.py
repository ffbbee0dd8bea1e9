"""Pictures out of image tensors: single ones, and captioned grids that go into papers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vistok.data.transforms import to_uint8
from vistok.errors import VistokError

_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_GAP = 4
# Small pictures are enlarged by whole factors to about this many pixels a side, so that captions fit.
_COMFORTABLE = 128


def to_image(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as an 8-bit picture.

    Raises:
        VistokError: another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise VistokError(
            f"a picture is made of a tensor [3, H, W], got {list(image.shape)}; take one image of a batch"
        )
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
    rows: Sequence[Sequence[Tensor | None]],
    *,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    scale: int | None = None,
) -> Image.Image:
    """A table of pictures.

    Args:
        rows: of images [3, H, W] in [0, 1], all of one size; None leaves a place empty.
        column_titles: above the columns; row_titles: left of the rows; captions: below each picture.
            Titles of columns and captions are cut to the width of a picture.
        scale: whole factor of enlargement (pixels stay square); None chooses for legibility.
    Raises:
        VistokError: no image at all, or images of different sizes.
    """
    sizes = {tuple(image.shape) for row in rows for image in row if image is not None}
    if len(sizes) != 1:
        raise VistokError(f"a grid takes images of one size, got {sorted(sizes) or 'none'}")
    height, width = sizes.pop()[-2:]
    scale = scale or max(1, _COMFORTABLE // max(height, width))
    height, width = height * scale, width * scale
    font = ImageFont.load_default(size=max(11, min(22, width // 9)))
    line = int(font.size * 1.6)
    left = _GAP + (int(max(map(font.getlength, row_titles))) + 2 * _GAP if row_titles else 0)
    top = line + _GAP if column_titles else _GAP
    below = line if captions else 0
    columns = max(map(len, rows))
    size = (left + columns * (width + _GAP), top + len(rows) * (height + below + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(text: str, x: int, y: int) -> None:
        draw.text((x, y), _cut(text, font, width), fill=_INK, font=font, anchor="mm")

    for column, title in enumerate(column_titles):
        write(title, left + column * (width + _GAP) + width // 2, top // 2)
    for number, row in enumerate(rows):
        y = top + number * (height + below + _GAP)
        if number < len(row_titles):
            draw.text((left - 2 * _GAP, y + height // 2), row_titles[number], fill=_INK, font=font, anchor="rm")
        for column, image in enumerate(row):
            x = left + column * (width + _GAP)
            if image is not None:
                sheet.paste(to_image(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
            if number < len(captions) and column < len(captions[number]):
                write(captions[number][column], x + width // 2, y + height + below // 2)
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as fits beside three dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
