"""Line plots as pictures, for papers and slides: what ``vistok.report.plots.line_plot`` draws as SVG, drawn by Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from vistok.report.plots import COLOURS, axis_ticks, format_number, plot_points

SCALE = 2  # pixels a unit of the SVG's
DETAIL = 2  # drawn larger and scaled down, as Pillow's lines have no smooth edges
_LEFT, _RIGHT, _BOTTOM, _TOP, _LEGEND_LINE = 58, 18, 46, 34, 18
INK, SOFT, GRID, PAPER = (31, 35, 40), (89, 99, 110), (226, 230, 234), (255, 255, 255)


def line_picture(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    markers: bool = False,
    size: tuple[int, int] = (560, 340),
) -> Image.Image:
    """Lines over one pair of axes, with a legend above them; twice ``size`` pixels.

    Args:
        series: name -> (xs, ys), of equal lengths; values that are not finite are left out.
        title, x_label, y_label: texts.
        log_x: logarithmic x axis; points at x <= 0 are left out.
        markers: a dot at every point.
        size: as of ``line_plot``.
    Raises:
        VistokError: xs and ys of different lengths.
    """
    unit = SCALE * DETAIL
    lines = {name: plot_points(name, xs, ys, log_x=log_x) for name, (xs, ys) in series.items()}
    width, height = size
    sheet = Image.new("RGB", (width * unit, height * unit), PAPER)
    draw = ImageDraw.Draw(sheet)
    fonts = {points: ImageFont.load_default(size=points * unit) for points in (12, 13)}

    def write(
        text: str, x: float, y: float, anchor: str, *, points: int = 12, fill: tuple[int, int, int] = INK
    ) -> None:
        draw.text((x * unit, y * unit), text, fill=fill, font=fonts[points], anchor=anchor)

    write(title, _LEFT, 16, "lm", points=13)
    top = float(_TOP)
    if len(lines) > 1:
        x, y = float(_LEFT), _TOP + 4.0
        for number, name in enumerate(lines):
            needed = 24 + fonts[12].getlength(name) / unit + 12
            if x > _LEFT and x + needed > width - _RIGHT:
                x, y = float(_LEFT), y + _LEGEND_LINE
            colour = COLOURS[number % len(COLOURS)]
            draw.rounded_rectangle((x * unit, (y - 2) * unit, (x + 14) * unit, (y + 2) * unit), 2 * unit, fill=colour)
            write(name, x + 20, y, "lm")
            x += needed
        top = y + 16
    flat = [point for line in lines.values() for point in line]
    ticks = axis_ticks(flat, log_x=log_x)
    bottom, right = height - _BOTTOM, width - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = ticks.position(x, y)
        return (_LEFT + across * (right - _LEFT)) * unit, (bottom - up * (bottom - top)) * unit

    for value in ticks.y:
        y = place(ticks.x_first, value)[1]
        draw.line((_LEFT * unit, y, right * unit, y), fill=GRID, width=unit)
        write(format_number(value), _LEFT - 7, y / unit, "rm", fill=SOFT)
    for value in ticks.x:
        x = place(value, ticks.y_first)[0]
        draw.line((x, bottom * unit, x, (bottom + 4) * unit), fill=SOFT, width=unit)
        write(format_number(value), x / unit, bottom + 14, "mm", fill=SOFT)
    draw.line((_LEFT * unit, bottom * unit, right * unit, bottom * unit), fill=SOFT, width=unit)
    write(x_label, (_LEFT + right) / 2, height - 10, "mm")
    _write_upwards(sheet, y_label, fonts[12], 14 * unit, int((top + bottom) / 2 * unit))
    for number, line in enumerate(lines.values()):
        colour, path = COLOURS[number % len(COLOURS)], [place(x, y) for x, y in line]
        if len(path) > 1:
            draw.line(path, fill=colour, width=2 * unit, joint="curve")
        if markers:
            for x, y in path:
                radius = 3.2 * unit
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return sheet.resize((width * SCALE, height * SCALE), Image.Resampling.LANCZOS)


def side_by_side(pictures: Sequence[Image.Image], *, columns: int = 2) -> Image.Image:
    """Pictures in rows of ``columns``, on white."""
    width, height = max(image.width for image in pictures), max(image.height for image in pictures)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), PAPER)
    for number, image in enumerate(pictures):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


def stacked(pictures: Sequence[Image.Image], *, columns: int = 2) -> Image.Image:
    """Pictures of one width and any height under each other, in columns from left to right, on white."""
    width = max(image.width for image in pictures)
    rows = -(-len(pictures) // min(columns, len(pictures)))
    parts = [pictures[start : start + rows] for start in range(0, len(pictures), rows)]
    sheet = Image.new("RGB", (len(parts) * width, max(sum(image.height for image in part) for part in parts)), PAPER)
    for number, part in enumerate(parts):
        top = 0
        for image in part:
            sheet.paste(image, (number * width, top))
            top += image.height
    return sheet


def _write_upwards(sheet: Image.Image, text: str, font: ImageFont.FreeTypeFont, x: int, y: int) -> None:
    length, height = int(font.getlength(text)) + 2, int(font.size * 1.5)
    strip = Image.new("RGB", (length, height), PAPER)
    ImageDraw.Draw(strip).text((length / 2, height / 2), text, fill=INK, font=font, anchor="mm")
    turned = strip.rotate(90, expand=True)
    sheet.paste(turned, (x - turned.width // 2, y - turned.height // 2))
