"""The plot of results: what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from vistok.errors import VistokError
from vistok.metrics.compare import Column
from vistok.report.compare import comparison_picture, metric_title
from vistok.report.interval_picture import Interval, interval_picture
from vistok.report.plots import COLOURS


def extent(picture: Image.Image, colour: str) -> tuple[int, int, int]:
    """The first and last column of a colour, and the middle row."""
    wanted = np.array(ImageColor.getrgb(colour))
    rows, columns = np.nonzero((np.abs(np.asarray(picture).astype(int) - wanted) < 8).all(axis=2))
    return int(columns.min()), int(columns.max()), int(np.median(rows))


def test_dots_lie_at_their_values() -> None:
    rows = [Interval("a", 1.0, 0.5, place=0), Interval("b", 3.0, place=1), Interval("c", 2.0, hollow=True, place=2)]
    picture = interval_picture(rows, title="A title")
    a, b, c = (extent(picture, colour) for colour in COLOURS[:3])
    assert a[2] < b[2] < c[2], "a row each, from top to bottom"
    middle = [(first + last) / 2 for first, last, _ in (a, b, c)]
    assert middle[0] < middle[2] < middle[1]
    assert middle[2] - middle[0] == pytest.approx(middle[1] - middle[2], abs=3)
    whiskers, one = a[1] - a[0], middle[2] - middle[0]
    assert whiskers == pytest.approx(one, abs=8), "0.5 to either side is as long as from 1 to 2"
    assert b[1] - b[0] < 25 and c[1] - c[0] < 25


def test_equal_values_long_names_and_nothing() -> None:
    assert interval_picture([Interval("x" * 90, 0.0), Interval("y", 0.0)], title="t").width == 1120
    with pytest.raises(VistokError, match="no rows"):
        interval_picture([], title="t")


def test_titles() -> None:
    assert metric_title("fd_lite0") == "Frechet distance of lite0 (lower is better)"
    assert metric_title("clip_score") == "CLIPScore (higher is better)"
    assert metric_title("precision_dinov2") == "precision of dinov2 (higher is better)"
    assert metric_title("tokens_per_image") == "tokens an image"
    assert metric_title("codebook tokens") is None


def test_a_panel_a_metric() -> None:
    both = [Column("a", {"fid": 2.0, "psnr": 20.0}, {"fid": 0.1}), Column("b", {"fid": 2.5}, published=True)]
    assert comparison_picture(both).width == 2240
    assert comparison_picture([Column("a", {"fid": 2.0})]).width == 1120
    with pytest.raises(VistokError, match="no metric to plot"):
        comparison_picture([Column("a", {"codebook tokens": 2.0})])
