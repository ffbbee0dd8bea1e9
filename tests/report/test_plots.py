"""Plots: valid SVG, escaped texts, everything within the frame."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.report.plots import Svg, _ticks, bar_plot, histogram, line_plot

NS = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "a < b & c", "x_label": "step", "y_label": '"nats"'}
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{NS}text")]


@given(values, st.booleans(), st.booleans(), st.booleans())
def test_lines_stay_inside_and_are_valid(ys, log_x, markers, smooth):
    xs = [float(number) for number in range(1, len(ys) + 1)]
    svg = line_plot({"one": (xs, ys), "two": (xs, ys[::-1])}, log_x=log_x, markers=markers, smooth=smooth, **LABELS)
    root = ElementTree.fromstring(svg)
    assert isinstance(svg, Svg) and "a < b & c" in texts(svg) and "two" in texts(svg)
    for line in root.iter(f"{NS}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 560 and 0 <= y <= 320
    assert len(list(root.iter(f"{NS}circle"))) == (2 * len(ys) if markers else 0)


@given(values)
def test_bars_and_histograms_are_valid(ys):
    bars = list(ElementTree.fromstring(bar_plot(ys, **LABELS)).iter(f"{NS}rect"))
    assert len(bars) == len(ys) and all(float(bar.attrib["height"]) >= 0 for bar in bars)
    assert len(list(ElementTree.fromstring(histogram(ys, bins=7, **LABELS)).iter(f"{NS}rect"))) == 7


def test_what_is_not_finite_is_left_out():
    svg = line_plot({"x": ([0.0, 1.0, 2.0, 3.0], [1.0, math.nan, math.inf, 2.0])}, log_x=False, **LABELS)
    assert "nan" not in svg and "inf" not in svg
    assert "no data" in line_plot({"x": ([0.0], [1.0])}, log_x=True, **LABELS)
    assert "no data" in line_plot({}, **LABELS)
    ElementTree.fromstring(histogram([math.nan], **LABELS))
    ElementTree.fromstring(bar_plot([], **LABELS))


def test_log_ticks_name_few_points_and_decades():
    few = line_plot({"x": ([1, 4, 16, 64], [1, 2, 3, 4])}, log_x=True, **LABELS)
    assert {"1", "4", "16", "64"} <= set(texts(few))
    many = line_plot({"x": (list(range(1, 20001)), [1.0] * 20000)}, log_x=True, **LABELS)
    assert {"1", "10", "100", "1,000", "10,000"} <= set(texts(many))
    assert len(many) < 40_000  # twenty thousand points were thinned


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_within_and_evenly_spaced(low, span):
    ticks = _ticks(low, low + span)
    assert 2 <= len(ticks) <= 7
    assert low - 1e-6 * span <= ticks[0] and ticks[-1] <= low + span * (1 + 1e-6)


def test_lengths_must_match():
    with pytest.raises(VistokError, match="2 x values and 1 y"):
        line_plot({"x": ([1, 2], [1])}, **LABELS)
