"""A rate-distortion result as plots, table and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vistok.metrics.curve import curve_table
from vistok.report.grid import save_image
from vistok.report.html import Page
from vistok.report.plot_picture import line_picture, side_by_side
from vistok.report.plots import Svg, line_plot
from vistok.report.table import text_table

_LABELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS (lower is better)",
    "lite0_distance": "lite0 distance (lower is better)",
    "fid": "rFID (lower is better)",
    "fd_lite0": "rFD-lite0 (lower is better)",
}
_CODECS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
_HIGHER_IS_BETTER = ("psnr", "ssim")
Series = dict[str, tuple[list[float], list[float]]]


def curve_panels(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What to plot, as arguments of ``line_plot`` and ``line_picture``: each metric against tokens and against bytes."""
    first = result["tokenizers"][0]["points"][0]
    panels = []
    for metric in (key for key in _LABELS if key in first):
        by_tokens: Series = {}
        by_bytes: Series = {}
        for tokenizer in result["tokenizers"]:
            ys = [point[metric] for point in tokenizer["points"]]
            by_tokens[tokenizer["name"]] = ([point["tokens"] for point in tokenizer["points"]], ys)
            by_bytes[tokenizer["name"]] = ([point["stored_bytes"] for point in tokenizer["points"]], ys)
        for codec in result["codecs"]:
            if metric in codec["sweep"][0]:
                by_bytes[_CODECS.get(codec["name"], codec["name"])] = _frontier(codec["sweep"], metric)
        shared = {"y_label": _LABELS[metric], "log_x": True, "markers": True}
        name = _LABELS[metric].split(",")[0].split(" (")[0]
        panels.append({"series": by_tokens, "title": f"{name} against tokens", "x_label": "tokens an image", **shared})
        panels.append({"series": by_bytes, "title": f"{name} against bytes", "x_label": "bytes an image", **shared})
    return panels


def curve_plots(result: dict[str, Any]) -> list[Svg]:
    """The panels as SVG."""
    return [line_plot(panel.pop("series"), **panel) for panel in curve_panels(result)]


def curve_picture(result: dict[str, Any]) -> Image.Image:
    """The panels as one picture, two in a row."""
    return side_by_side([line_picture(panel.pop("series"), **panel) for panel in curve_panels(result)])


def format_curve(result: dict[str, Any]) -> str:
    """The table as text, with what is to be said about it below."""
    lines = [text_table(*curve_table(result)), *curve_remarks(result)]
    return "\n".join(lines)


def curve_remarks(result: dict[str, Any]) -> list[str]:
    """Data, what bytes are, and what was left out, a line each."""
    data = result["data"]
    out = [
        f"data: {data['spec']}, {result['images']} of {data['size']} images at {result['image_size']} pixels, "
        f"protocol {result['protocol']['name']}",
        f"stored bytes: {result['stored_bytes']}",
    ]
    if result["codecs"]:
        out.append(
            f"bytes of codecs: {result['codec_bytes']}; their PSNR is the best in at most the tokenizer's stored bytes"
        )
    out += [f"note: {text}" for text in result["notes"]]
    out += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    if result["unreadable"]:
        out.append(f"unreadable: {result['unreadable']}: {', '.join(result['unreadable_names'][:5])}")
    return out


def write_curve(
    result: dict[str, Any], folder: str | Path, *, strips: Mapping[str, Image.Image] | None = None
) -> dict[str, str]:
    """Write ``curve.png``, ``curve.html`` and the strips into a folder (the result itself: ``save_result``).

    Args:
        result: of ``evaluate_curve``.
        folder: is made where it is missing.
        strips: pictures of ``length_strip``, by tokenizer.
    Returns:
        the files, by what they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"plot": folder / "curve.png", "page": folder / "curve.html"}
    picture = curve_picture(result)
    save_image(picture, files["plot"])
    page = Page("Quality against tokens and bytes", curve_remarks(result)[0])
    add_curve(page, result, strips=strips)
    page.save(files["page"])
    for number, strip in enumerate((strips or {}).values()):
        files[f"strip_{number}"] = folder / f"strip_{number}.png"
        save_image(strip, files[f"strip_{number}"])
    return {what: str(path) for what, path in files.items()}


def add_curve(page: Page, result: dict[str, Any], *, strips: Mapping[str, Image.Image] | None = None) -> None:
    """Plots, table, strips and remarks, put at the end of a page."""
    page.plots(*curve_plots(result))
    page.table(*curve_table(result))
    for name, strip in (strips or {}).items():
        page.picture(strip, f"{name}: more and more tokens, coarse to fine; stored bytes in brackets, PSNR below.")
    for line in curve_remarks(result)[1:]:
        page.text(line)


def _frontier(sweep: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    """The settings that no other one beats in both bytes and quality, by bytes."""
    sign = 1.0 if metric in _HIGHER_IS_BETTER else -1.0
    xs: list[float] = []
    ys: list[float] = []
    for point in sorted(sweep, key=lambda point: (point["bytes"], -sign * point[metric])):
        if not ys or sign * point[metric] > sign * ys[-1]:
            xs.append(point["bytes"])
            ys.append(point[metric])
    return xs, ys
