"""Plots as SVG text: lines, bars and histograms with axes, without any plotting package.

The ink is the page's own text colour, and the colours of lines and bars stand out on white and on
black, so that a plot is readable in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from vistok.errors import VistokError

COLOURS = ("#3b82f6", "#e5572c", "#1f9d60", "#a855f7", "#c28a0c", "#0d9fb8")
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 34, 46
_LEGEND_LINE, _LETTER = 19, 6.6  # pixels: a row of the legend, and a letter of it
_MOST_POINTS = 800  # a line has no more; neighbours are averaged
_NOISY = 60  # a line of more points also gets its running mean, if asked for


class Svg(str):
    """SVG markup made by this module: what a page takes in without escaping it."""


@dataclass(frozen=True)
class AxisTicks:
    """Ticks of both axes, and where values lie between the axes' ends (0 to 1)."""

    x: list[float]
    y: list[float]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool

    @property
    def x_first(self) -> float:
        """The left end."""
        return self.x_range[0]

    @property
    def y_first(self) -> float:
        """The lower end."""
        return self.y_range[0]

    def position(self, x: float, y: float) -> tuple[float, float]:
        """A point between the axes."""
        place, ends = (math.log10(x), map(math.log10, self.x_range)) if self.log_x else (x, self.x_range)
        left, right = ends
        low, high = self.y_range
        across = 0.5 if right == left else (place - left) / (right - left)
        return across, 0.5 if high == low else (y - low) / (high - low)


def axis_ticks(points: Sequence[tuple[float, float]], *, log_x: bool) -> AxisTicks:
    """Axes around points, as ``line_plot`` has them."""
    if not points:
        return AxisTicks([], [], (0.0, 1.0), (0.0, 1.0), False)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = 0.05 * (max(ys) - min(ys))
    y_range = (min(ys) - margin, max(ys) + margin)
    return AxisTicks(_x_ticks(xs, log_x=log_x), _ticks(*y_range), (min(xs), max(xs)), y_range, log_x)


class _Axes:
    """Maps values to pixels, and draws grid, ticks and labels."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        size: tuple[int, int],
        *,
        log_x: bool,
        top: int,
    ) -> None:
        self.width, self.height = size
        self.top, self.log_x = top, log_x
        self.x0, self.x1 = (math.log10(value) if log_x else value for value in x_range)
        self.y0, self.y1 = y_range
        if self.x1 == self.x0:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        if self.y1 == self.y0:
            self.y0, self.y1 = self.y0 - 0.5, self.y1 + 0.5

    def x(self, value: float) -> float:
        place = math.log10(value) if self.log_x else value
        return _LEFT + (place - self.x0) / (self.x1 - self.x0) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - self.top - _BOTTOM)

    def frame(self, title: str, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[str]:
        right, base = self.width - _RIGHT, self.height - _BOTTOM
        out = [f'<text x="{_LEFT}" y="18" font-size="13" font-weight="600">{escape(title)}</text>']
        for value in _ticks(self.y0, self.y1):
            y = self.y(value)
            out.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.13"/>'
            )
            out.append(
                f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" opacity="0.8">{format_number(value)}</text>'
            )
        for value in x_ticks:
            x = self.x(value)
            out.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}" stroke="currentColor" opacity="0.6"/>'
            )
            out.append(
                f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle" opacity="0.8">{format_number(value)}</text>'
            )
        out.append(f'<line x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}" stroke="currentColor" opacity="0.6"/>')
        middle = (_LEFT + right) / 2
        out.append(f'<text x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">{escape(x_label)}</text>')
        middle = (self.top + base) / 2
        out.append(
            f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )
        return out


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    markers: bool = False,
    smooth: bool = False,
    size: tuple[int, int] = (560, 320),
) -> Svg:
    """Lines over one pair of axes, with a legend above them where there are several.

    Args:
        series: name -> (xs, ys), of equal lengths; values that are not finite are left out.
        title, x_label, y_label: texts.
        log_x: logarithmic x axis; points at x <= 0 are left out.
        markers: a dot at every point.
        smooth: draw long lines faintly, and their running mean over them.
        size: width and height in pixels.
    Raises:
        VistokError: xs and ys of different lengths.
    """
    lines = {name: plot_points(name, xs, ys, log_x=log_x) for name, (xs, ys) in series.items()}
    flat = [point for line in lines.values() for point in line]
    legend, top = _legend(list(lines), size[0]) if len(lines) > 1 else ([], _TOP)
    if not flat:
        return _svg(
            _Axes((1, 2), (0, 1), size, log_x=False, top=top).frame(f"{title} (no data)", x_label, y_label, []),
            size,
            title,
        )
    xs, ys = [x for x, _ in flat], [y for _, y in flat]
    margin = 0.05 * (max(ys) - min(ys))
    axes = _Axes((min(xs), max(xs)), (min(ys) - margin, max(ys) + margin), size, log_x=log_x, top=top)
    out = axes.frame(title, x_label, y_label, _x_ticks(xs, log_x=log_x)) + legend
    for number, line in enumerate(lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        noisy = smooth and len(line) > _NOISY
        out.append(_polyline(_thinned(line), axes, colour, width=1.2 if noisy else 2.0, opacity=0.35 if noisy else 1.0))
        if noisy:
            out.append(_polyline(_thinned(_running_mean(line)), axes, colour, width=2.2, opacity=1.0))
        if markers:
            out += [
                f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.5" fill="{colour}">'
                f"<title>{format_number(x)}: {format_number(y)}</title></circle>"
                for x, y in line
            ]
    return _svg(out, size, title)


def bar_plot(
    values: Sequence[float], *, title: str, x_label: str, y_label: str, size: tuple[int, int] = (560, 320)
) -> Svg:
    """One bar a value, from left to right, at 0, 1, 2, ..."""
    return _bars(values, (0.0, float(max(1, len(values)))), title, x_label, y_label, size)


def histogram(
    values: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str = "count",
    bins: int = 40,
    size: tuple[int, int] = (560, 320),
) -> Svg:
    """How often values fall into ``bins`` equal parts of their range; what is not finite is left out."""
    finite = [float(value) for value in values if math.isfinite(value)]
    counts, edges = np.histogram(finite, bins=bins)
    return _bars(counts.tolist(), (float(edges[0]), float(edges[-1])), title, x_label, y_label, size)


def _bars(
    values: Sequence[float], x_range: tuple[float, float], title: str, x_label: str, y_label: str, size: tuple[int, int]
) -> Svg:
    heights = [float(value) if math.isfinite(value) else 0.0 for value in values]
    axes = _Axes(x_range, (min([0.0, *heights]), max([0.0, *heights]) * 1.04), size, log_x=False, top=_TOP)
    out = axes.frame(title, x_label, y_label, _ticks(*x_range))
    step = (x_range[1] - x_range[0]) / max(1, len(heights))
    # No gaps between thin bars: they would flicker. A hair of overlap hides the seams.
    gap = 1.0 if len(heights) < 150 else -0.3
    for number, value in enumerate(heights):
        left, right = axes.x(x_range[0] + number * step), axes.x(x_range[0] + (number + 1) * step)
        top, bottom = sorted((axes.y(value), axes.y(0.0)))
        out.append(
            f'<rect x="{left:.2f}" y="{top:.1f}" width="{max(0.5, right - left - gap):.2f}" height="{bottom - top:.1f}" '
            f'fill="{COLOURS[0]}"><title>{format_number(value)}</title></rect>'
        )
    return _svg(out, size, title)


def plot_points(name: str, xs: Sequence[float], ys: Sequence[float], *, log_x: bool) -> list[tuple[float, float]]:
    """The points of a line that can be drawn."""
    if len(xs) != len(ys):
        raise VistokError(f"the line {name!r} has {len(xs)} x values and {len(ys)} y values")
    pairs = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)]


def _thinned(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(line) / _MOST_POINTS)
    if size <= 1:
        return line
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _running_mean(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of the neighbours on both sides, of fewer towards the ends so that these stay where they are."""
    sums = np.cumsum([0.0, *(y for _, y in line)])
    half = max(2, len(line) // 40)
    out = []
    for place, (x, _) in enumerate(line):
        reach = min(half, place, len(line) - 1 - place)
        out.append((x, float(sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)))
    return out


def _polyline(line: list[tuple[float, float]], axes: _Axes, colour: str, *, width: float, opacity: float) -> str:
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round" '
        f'opacity="{opacity}"/>'
    )


def _legend(names: list[str], width: int) -> tuple[list[str], int]:
    """Names in their colours, in as many rows as they take; and where the plot begins below them."""
    out, x, y = [], float(_LEFT), 38
    for number, name in enumerate(names):
        needed = 22 + _LETTER * len(name) + 14
        if x > _LEFT and x + needed > width - _RIGHT:
            x, y = float(_LEFT), y + _LEGEND_LINE
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<rect x="{x:.0f}" y="{y - 6}" width="14" height="4" rx="2" fill="{colour}"/>')
        out.append(f'<text x="{x + 20:.0f}" y="{y}">{escape(name)}</text>')
        x += needed
    return out, y + 14


def _x_ticks(xs: Sequence[float], *, log_x: bool) -> list[float]:
    distinct = sorted(set(xs))
    if not log_x:
        return distinct if len(distinct) <= 4 else _ticks(distinct[0], distinct[-1])
    decades = math.log10(distinct[-1] / distinct[0])
    if len(distinct) <= 10 and decades / len(distinct) > 0.12:  # few enough, and far enough apart, to name them all
        return distinct
    factors = (1, 2, 5) if decades < 3 else (1,)
    powers = range(math.floor(math.log10(distinct[0])), math.ceil(math.log10(distinct[-1])) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if distinct[0] * 0.999 <= tick <= distinct[-1] * 1.001]


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def format_number(value: float) -> str:
    """Short: no digits that floating-point arithmetic made up, thousands set apart."""
    rounded = float(f"{value:.6g}")
    return f"{rounded:,.0f}" if rounded == int(rounded) and abs(rounded) < 1e7 else f"{rounded:g}"


def _svg(parts: Sequence[str], size: tuple[int, int], title: str) -> Svg:
    width, height = size
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )
