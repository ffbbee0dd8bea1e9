"""Results side by side as a plot and a page: each number with its confidence interval, beside published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vistok.errors import VistokError
from vistok.metrics.compare import Column, compare_results, comparison_columns
from vistok.report.grid import save_image
from vistok.report.html import Page
from vistok.report.interval_picture import Interval, interval_picture
from vistok.report.plot_picture import stacked

# Names (in letters that Pillow's own font has), and whether more is better; metrics of other features than Inception's have their name behind them.
_METRICS = {
    "fid": ("FID", False),
    "fd": ("Frechet distance", False),
    "sfid": ("sFID", False),
    "kid": ("KID", False),
    "is": ("inception score", True),
    "score": ("score", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "density": ("density", True),
    "coverage": ("coverage", True),
    "cmmd": ("CMMD", False),
    "clip_score": ("CLIPScore", True),
    "clip_cosine": ("CLIP cosine", True),
    "psnr": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "ms_ssim": ("MS-SSIM", True),
    "lpips": ("LPIPS", False),
    "tokens_per_image": ("tokens an image", False),
    "bits_per_pixel": ("bits a pixel", False),
    "codebook usage": ("codebook used", True),
    "codebook perplexity": ("codebook perplexity", True),
}
_FEATURES = ("lite0", "dinov2", "clip")
_NEUTRAL = ("tokens_per_image", "bits_per_pixel")  # less is cheaper, not better
_NORMAL_95 = 1.96
NOTE = "Whiskers are 95% intervals: 1.96 standard deviations to either side. Hollow: the published figure."


def comparison_picture(columns: Sequence[Column]) -> Image.Image:
    """A panel a metric, a row a result, two panels side by side.

    Args:
        columns: of ``vistok.metrics.compare.comparison_columns``.
    Raises:
        VistokError: they have no metric.
    """
    panels = []
    for metric in dict.fromkeys(key for column in columns for key in column.numbers):
        title = metric_title(metric)
        if title is None:
            continue
        rows = [
            Interval(
                column.name,
                column.numbers[metric],
                _NORMAL_95 * column.spread.get(metric, 0.0),
                hollow=column.published,
                place=column.place,
            )
            for column in columns
            if metric in column.numbers
        ]
        panels.append(interval_picture(rows, title=title))
    if not panels:
        raise VistokError("these results have no metric to plot; give those of vistok eval recon or gen")
    return stacked(panels)


def metric_title(metric: str) -> str | None:
    """A metric's name and direction, as a panel's title; None for what is not plotted."""
    base, _, features = metric.rpartition("_")
    named = base if features in _FEATURES and metric not in _METRICS else metric
    if named not in _METRICS:
        return None
    label, more = _METRICS[named]
    of = f" of {features}" if named != metric else ""
    better = "" if metric in _NEUTRAL else f" ({'higher' if more else 'lower'} is better)"
    return f"{label}{of}{better}"


def write_comparison(
    results: Mapping[str, Mapping[str, Any]], folder: str | Path, *, mixed: bool = False
) -> dict[str, str]:
    """Write ``compare.png`` and ``compare.html`` into a folder.

    Args:
        results: by name, as ``vistok.metrics.compare.read_results`` gives them.
        folder: is made where it is missing.
        mixed: also where the protocols differ.
    Returns:
        the files, by what they are.
    Raises:
        VistokError: as ``compare_results``.
    """
    header, rows, remarks = compare_results(results, mixed=mixed)
    picture = comparison_picture(comparison_columns(results))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"plot": folder / "compare.png", "page": folder / "compare.html"}
    save_image(picture, files["plot"])
    protocols = dict.fromkeys(str(result["protocol"].get("name")) for result in results.values())
    page = Page("Results side by side", f"Protocol: {', '.join(protocols)}.")
    page.picture(picture, NOTE)
    page.table(header, rows)
    for remark in remarks:
        page.text(f"Note: {remark}")
    page.save(files["page"])
    return {what: str(path) for what, path in files.items()}
