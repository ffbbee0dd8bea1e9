"""Plots as SVG text: lines and bars with axes, without any plotting package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#d97706", "#0891b2")
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46


class _Axes:
    """Maps values to pixels, and draws frame, ticks and labels."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], size: tuple[int, int], *, log_x: bool, zero: bool) -> None:
        self.width, self.height = size
        self.log_x = log_x
        self.x0, self.x1 = min(map(self._fx, xs)), max(map(self._fx, xs))
        self.y0, self.y1 = min([*ys, *([0.0] if zero else [])]), max(ys)
        if self.x1 == self.x0:
            self.x1 = self.x0 + 1.0
        if self.y1 == self.y0:
            self.y1 = self.y0 + 1.0
        if not zero:
            margin = 0.05 * (self.y1 - self.y0)
            self.y0, self.y1 = self.y0 - margin, self.y1 + margin

    def _fx(self, value: float) -> float:
        return math.log10(value) if self.log_x else value

    def x(self, value: float) -> float:
        return _LEFT + (self._fx(value) - self.x0) / (self.x1 - self.x0) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - _TOP - _BOTTOM)

    def frame(self, title: str, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[str]:
        right, base = self.width - _RIGHT, self.height - _BOTTOM
        out = [f'<text x="{self.width / 2:.0f}" y="20" text-anchor="middle" font-weight="600">{escape(title)}</text>']
        for value in _ticks(self.y0, self.y1):
            y = self.y(value)
            out.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.15"/>')
            out.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in x_ticks:
            out.append(f'<text x="{self.x(value):.1f}" y="{base + 17}" text-anchor="middle">{value:g}</text>')
        out.append(f'<line x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}" stroke="currentColor"/>')
        out.append(f'<text x="{(_LEFT + right) / 2:.0f}" y="{self.height - 8}" text-anchor="middle">{escape(x_label)}</text>')
        middle = (_TOP + base) / 2
        out.append(f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
        return out


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    markers: bool = False,
    size: tuple[int, int] = (560, 320),
) -> str:
    """Lines over one pair of axes, with a legend.

    Args:
        series: name -> (xs, ys), of equal lengths; values that are not finite are left out.
        title, x_label, y_label: texts.
        log_x: logarithmic x axis.
        markers: a dot at every point.
        size: width and height in pixels.
    """
    points = {
        name: [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for name, (xs, ys) in series.items()
    }
    flat = [point for line in points.values() for point in line]
    if not flat:
        return _svg([], size, title)
    axes = _Axes([x for x, _ in flat], [y for _, y in flat], size, log_x=log_x, zero=False)
    distinct = sorted({x for x, _ in flat})
    x_ticks = distinct if len(distinct) <= 8 else _ticks(distinct[0], distinct[-1])
    out = axes.frame(title, x_label, y_label, x_ticks)
    for number, (name, line) in enumerate(points.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if markers:
            out += [f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line]
        if len(points) > 1:
            y = _TOP + 8 + 17 * number
            out.append(f'<rect x="{size[0] - 170}" y="{y - 8}" width="12" height="4" fill="{colour}"/>')
            out.append(f'<text x="{size[0] - 152}" y="{y}">{escape(name)}</text>')
    return _svg(out, size, title)


def bar_plot(
    values: Sequence[float], *, title: str, x_label: str, y_label: str, size: tuple[int, int] = (560, 260)
) -> str:
    """One bar a value, from left to right."""
    axes = _Axes([0.0, float(max(1, len(values)))], [*values, 0.0], size, log_x=False, zero=True)
    out = axes.frame(title, x_label, y_label, _ticks(0, len(values)))
    for number, value in enumerate(values):
        x, y = axes.x(number), axes.y(value)
        width = max(0.5, axes.x(number + 1) - x - (1 if len(values) < 150 else 0))
        out.append(f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{axes.y(0.0) - y:.1f}" fill="{_COLOURS[0]}"/>')
    return _svg(out, size, title)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two values."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _svg(parts: Sequence[str], size: tuple[int, int], title: str) -> str:
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )
