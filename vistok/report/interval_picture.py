"""Numbers with intervals, a row each: dots and whiskers over one axis, drawn by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vistok.errors import VistokError
from vistok.report.plot_picture import DETAIL, GRID, INK, PAPER, SCALE, SOFT
from vistok.report.plots import COLOURS, axis_ticks, format_number

_TOP, _ROW, _BOTTOM, _GAP = 34, 24, 30, 10
_VALUES = 112  # width of the numbers on the right
_MOST_NAME = 0.36  # of the width


@dataclass(frozen=True)
class Interval:
    """One row.

    Attributes:
        name: on the left.
        value: where the dot is.
        reach: of the whiskers, to either side; 0 for none.
        hollow: draw a hollow diamond instead of the dot, and its texts in grey.
        place: of its colour, so that a result has the same in all plots.
    """

    name: str
    value: float
    reach: float = 0.0
    hollow: bool = False
    place: int = 0


def interval_picture(rows: Sequence[Interval], *, title: str, width: int = 560) -> Image.Image:
    """Rows of dots with whiskers, names on their left and numbers on their right; twice ``width`` pixels wide.

    Args:
        rows: from top to bottom.
        title: above them.
        width: in units of half a pixel of the picture.
    Raises:
        VistokError: no rows.
    """
    if not rows:
        raise VistokError(f"the plot {title!r} has no rows")
    unit = SCALE * DETAIL
    height = _TOP + _ROW * len(rows) + _BOTTOM
    sheet = Image.new("RGB", (width * unit, height * unit), PAPER)
    draw = ImageDraw.Draw(sheet)
    fonts = {points: ImageFont.load_default(size=points * unit) for points in (11, 12, 13)}

    def write(
        text: str, x: float, y: float, anchor: str, *, points: int = 12, fill: tuple[int, int, int] = INK
    ) -> None:
        draw.text((x * unit, y * unit), text, fill=fill, font=fonts[points], anchor=anchor)

    most = _MOST_NAME * width
    names = [_shortened(row.name, fonts[12], most * unit) for row in rows]
    left = _GAP + max(fonts[12].getlength(name) for name in names) / unit + 2 * _GAP
    right, bottom = width - _VALUES, height - _BOTTOM
    # Values lie between the axis' ends with some room, so that no dot is cut.
    ends = [row.value + sign * row.reach for row in rows for sign in (-1, 1)]
    room = 0.06 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    ticks = axis_ticks([(0.0, min(ends) - room), (0.0, max(ends) + room)], log_x=False)

    def across(value: float) -> float:
        return (left + ticks.position(0.0, value)[1] * (right - left)) * unit

    write(title, _GAP, 16, "lm", points=13)
    for value in ticks.y:
        draw.line((across(value), (_TOP - 4) * unit, across(value), bottom * unit), fill=GRID, width=unit)
        write(format_number(value), across(value) / unit, bottom + 12, "mm", points=11, fill=SOFT)
    draw.line((left * unit, bottom * unit, right * unit, bottom * unit), fill=SOFT, width=unit)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = (_TOP + _ROW * (number + 0.5)) * unit
        colour = COLOURS[row.place % len(COLOURS)]
        write(name, _GAP, y / unit, "lm", fill=SOFT if row.hollow else INK)
        spread = f" +- {row.reach:.2g}" if row.reach else ""
        write(f"{row.value:.4g}{spread}", width - _GAP, y / unit, "rm", fill=SOFT if row.hollow else INK)
        x = across(row.value)
        if row.reach:
            low, high, cap = across(row.value - row.reach), across(row.value + row.reach), 4 * unit
            draw.line((low, y, high, y), fill=colour, width=2 * unit)
            for end in (low, high):
                draw.line((end, y - cap, end, y + cap), fill=colour, width=2 * unit)
        if row.hollow:
            size = 5 * unit
            corners = [(x, y - size), (x + size, y), (x, y + size), (x - size, y)]
            draw.polygon(corners, fill=PAPER, outline=colour, width=2 * unit)
        else:
            size = 4.5 * unit
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    return sheet.resize((width * SCALE, height * SCALE), Image.Resampling.LANCZOS)


def _shortened(name: str, font: ImageFont.FreeTypeFont, most: float) -> str:
    """The name, or its beginning and end around dots where it is too long."""
    if font.getlength(name) <= most:
        return name
    for kept in range(len(name) - 3, 2, -1):
        short = f"{name[: (kept + 1) // 2]}...{name[len(name) - kept // 2 :]}"
        if font.getlength(short) <= most:
            return short
    return name[:3]
