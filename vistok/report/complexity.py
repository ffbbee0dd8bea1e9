"""A complexity result as table, pictures sorted from simple to complex, and page."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vistok.data.sources import ImageSource
from vistok.data.transforms import crop_image, to_tensor
from vistok.report.grid import image_grid, save_image
from vistok.report.html import Page
from vistok.report.plots import Svg, line_plot
from vistok.report.table import text_table

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

_COLUMNS = 10
_NAMED = 5


def complexity_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one for each tokenizer and wanted error."""
    header = ["tokenizer", "how", "wanted error", "tokens", "least", "most", "bits", "error", "psnr", "reached"]
    header += ["ms an image", "decodings an image"]
    rows = [
        [
            entry["tokenizer"],
            entry["how"],
            f"{entry['wanted']:g}",
            f"{entry['tokens']:.1f}",
            str(entry["tokens_least"]),
            str(entry["tokens_most"]),
            f"{entry['bits']:.0f}",
            f"{entry['error']:.4f}",
            f"{entry['psnr']:.2f}",
            f"{100 * entry['reached']:.0f}%",
            f"{1000 * entry['seconds']:.1f}",
            f"{entry['decodes']:.1f}",
        ]
        for entry in result["measurements"]
    ]
    return header, rows


def complexity_remarks(result: dict[str, Any]) -> list[str]:
    """Data, what the order is, and how far the measurements agree about it, a line each."""
    data, images = result["data"], result["images"]
    first = result["measurements"][0]["tokenizer"]
    out = [
        f"data: {data['spec']}, {len(images)} of {data['size']} images at {result['image_size']} pixels, "
        f"protocol {result['protocol']['name']}",
        f"order: tokens of {first} over all wanted errors, then its error",
        f"simplest: {', '.join(image['name'] for image in images[:_NAMED])}",
        f"most complex: {', '.join(image['name'] for image in images[: -_NAMED - 1 : -1])}",
    ]
    agreement = [
        f"{entry['tokenizer']} at {entry['wanted']:g}: {_number(entry['rank_correlation'])}"
        for entry in result["measurements"]
    ]
    agreement.append(f"bytes as PNG: {_number(result['png_rank_correlation'])}")
    out.append(f"rank correlation with this order: {', '.join(agreement)}")
    if result["unreadable"]:
        out.append(f"unreadable: {result['unreadable']}: {', '.join(result['unreadable_names'][:5])}")
    return out


def format_complexity(result: dict[str, Any]) -> str:
    """The table as text, with what is to be said about it below."""
    return "\n".join([text_table(*complexity_table(result)), *complexity_remarks(result)])


def complexity_plots(result: dict[str, Any]) -> list[Svg]:
    """Tokens of all images, each measurement in its own order; and tokens against the error that they leave."""
    tokens, errors = {}, {}
    for number, entry in enumerate(result["measurements"]):
        counts = sorted(image["needs"][number]["tokens"] for image in result["images"])
        tokens[f"{entry['tokenizer']}, error {entry['wanted']:g}"] = (list(range(1, len(counts) + 1)), counts)
        xs, ys = errors.setdefault(entry["tokenizer"], ([], []))
        xs.append(entry["tokens"])
        ys.append(entry["error"])
    out = [line_plot(tokens, title="Tokens an image needs", x_label="images, simple to complex", y_label="tokens")]
    if all(len(xs) > 1 for xs, _ in errors.values()):
        labels = {"title": "Error that is left", "x_label": "mean tokens", "y_label": "mean absolute error"}
        out.append(line_plot(errors, **labels, markers=True))
    return out


@torch.no_grad()
def complexity_picture(
    result: dict[str, Any], source: ImageSource, tokenizer: Tokenizer, *, count: int = 40
) -> Image.Image:
    """Evenly chosen pictures from simple to complex, row by row, each above what its tokens give.

    Args:
        result: of ``measure_complexity``.
        source: its pictures.
        tokenizer: its first one.
        count: at most so many pictures.
    """
    images, wanted = result["images"], result["measurements"][0]["wanted"]
    places = (
        range(len(images)) if len(images) <= count else [n * (len(images) - 1) // (count - 1) for n in range(count)]
    )
    chosen = [images[place] for place in places]
    how = {key: result["protocol"][key] for key in ("crop", "interpolation")}
    originals = torch.stack(
        [to_tensor(crop_image(source.image(entry["index"]), result["image_size"], **how)) for entry in chosen]
    )
    if tokenizer.adaptive:
        tokens = tokenizer.encode(originals.to(tokenizer.device), target_error=wanted)
    else:
        tokens = tokenizer.encode(originals.to(tokenizer.device))
        tokens = tokens.truncate([entry["needs"][0]["tokens"] for entry in chosen])
    decoded = tokenizer.decode(tokens).float().cpu()
    rows, captions = [], []
    for start in range(0, len(chosen), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        rows += [list(originals[part]), list(decoded[part])]
        captions += [
            [],
            [f"{need['tokens']} tok, {need['bits']} bit" for need in (e["needs"][0] for e in chosen[part])],
        ]
    return image_grid(rows, captions=captions)


def write_complexity(
    result: dict[str, Any], folder: str | Path, *, source: ImageSource, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, str]:
    """Write ``complexity.png``, ``complexity.csv`` and ``complexity.html`` (the result itself: ``save_result``).

    Args:
        result: of ``measure_complexity``.
        folder: is made where it is missing.
        source, tokenizers: what was measured.
    Returns:
        the files, by what they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {what: folder / f"complexity.{suffix}" for what, suffix in (("picture", "png"), ("list", "csv"))}
    files["page"] = folder / "complexity.html"
    first = result["measurements"][0]
    picture = complexity_picture(result, source, tokenizers[first["tokenizer"]])
    save_image(picture, files["picture"])
    _write_list(result, files["list"])
    remarks = complexity_remarks(result)
    page = Page("How many tokens does this image need?", remarks[0])
    page.table(*complexity_table(result))
    page.picture(
        picture,
        f"From simple to complex, row by row: an image above what its tokens give, for {first['tokenizer']} and a wanted "
        f"mean absolute error of {first['wanted']:g}.",
    )
    page.plots(*complexity_plots(result))
    for line in remarks[1:]:
        page.text(line)
    page.save(files["page"])
    return {what: str(path) for what, path in files.items()}


def _write_list(result: dict[str, Any], path: Path) -> None:
    """A row an image, from simple to complex."""
    keys = ("tokens", "bits", "stored_bytes", "error", "psnr", "reached")
    columns = [f"{entry['tokenizer']}@{entry['wanted']:g}" for entry in result["measurements"]]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "png_bytes", *(f"{column} {key}" for column in columns for key in keys)])
            for image in result["images"]:
                values = [need[key] for need in image["needs"] for key in keys]
                writer.writerow([image["name"], image["png_bytes"], *values])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
