"""A set of searches as table, plots and page: scores against what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vistok.report.grid import image_grid, save_image
from vistok.report.html import Page
from vistok.report.plot_picture import line_picture, side_by_side
from vistok.report.plots import line_plot
from vistok.report.table import text_table
from vistok.search.search_set import image_path

_COSTS = {
    "verifier_calls": "verifier calls an image",
    "token_forwards": "tokens through the generator, an image",
    "decoder_forwards": "passes of the decoder, an image",
    "seconds": "seconds an image",
}
_SCORES = {"score": "score", "judge": "judge's score"}


def search_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a cell a row; "gain" is over the model's best-of-N of the least budget (1: plain sampling), else over the least of its own."""
    judged = any("judge" in cell for cell in result["cells"])
    header = ["model", "method", "budget", "score", "+-", "gain", *(["judge", "+-"] if judged else [])]
    header += ["AR tokens", "decodings", "decoder passes", "verifier", "seconds"]
    rows = []
    for cell in result["cells"]:
        own = [other for other in result["cells"] if other["model"] == cell["model"]]
        plain = [other for other in own if other["method"] == "best_of_n"]
        first = min(plain or own, key=lambda other: other["cost"]["verifier_calls"])
        cost = cell["cost"]
        rows.append(
            [
                cell["model"],
                cell["method"],
                str(cell["budget"] or "-"),
                *_with_error(cell, "score"),
                f"{cell['score'] - first['score']:+.4g}",
                *(_with_error(cell, "judge") if judged else []),
                f"{cost['token_forwards']:.0f}",
                f"{cost['decoder_passes']:.1f}",
                f"{cost['decoder_forwards']:.1f}",
                f"{cost['verifier_calls']:.1f}",
                f"{cost['seconds']:.3f}",
            ]
        )
    return header, rows


def _with_error(cell: dict[str, Any], name: str) -> list[str]:
    if name not in cell:
        return ["-", "-"]
    error = cell[f"{name}_error"]
    return [f"{cell[name]:.5g}", "-" if error is None else f"{error:.2g}"]


def search_panels(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores against each cost, a line a model and method, as arguments of ``line_plot`` and ``line_picture``."""
    panels = []
    for score, title in _SCORES.items():
        cells = [cell for cell in result["cells"] if score in cell]
        for cost, label in _COSTS.items():
            series: dict[str, tuple[list[float], list[float]]] = {}
            for cell in sorted(cells, key=lambda entry, cost=cost: entry["cost"][cost]):
                xs, ys = series.setdefault(f"{cell['model']}, {cell['method']}", ([], []))
                xs.append(cell["cost"][cost])
                ys.append(cell[score])
            if any(x > 0 for xs, _ in series.values() for x in xs):
                name = label.split(",")[0].removesuffix(" an image")
                panels.append({"series": series, "title": f"{title.capitalize()} against {name}", "x_label": label})
                panels[-1] |= {"y_label": title, "log_x": True, "markers": True}
    return panels


def format_search(result: dict[str, Any]) -> str:
    """The table as text, and what the numbers are, below."""
    return "\n".join([text_table(*search_table(result)), *search_remarks(result)])


def search_remarks(result: dict[str, Any]) -> list[str]:
    """What the numbers are, a line each."""
    models = result["models"].values()
    verifiers, judges = (
        sorted({str(model[kind]) for model in models if model[kind]}) for kind in ("verifier", "judge")
    )
    out = [f"{result['num']} images; score: {', '.join(verifiers)}; costs are means an image; +- is the standard error"]
    return [*out, *([f"judge: {', '.join(judges)}, which no search has seen"] if judges else [])]


def write_search(result: dict[str, Any], folder: str | Path, *, pictures: int = 8) -> dict[str, str]:
    """Write plots, pictures of the winners and a page; returns their paths by name."""
    folder = Path(folder)
    files = {"plot": str(folder / "search.png"), "page": str(folder / "search.html")}
    panels = search_panels(result)
    save_image(side_by_side([line_picture(**panel) for panel in panels]), files["plot"])
    page = Page("Test-time search", " ".join(search_remarks(result)))
    page.plots(*(line_plot(**panel) for panel in panels))
    page.table(*search_table(result))
    if pictures > 0:
        files["grid"] = str(folder / "winners.png")
        grid = winners_grid(result, folder, pictures)
        save_image(grid, files["grid"])
        page.picture(grid, "The winners: a cell a row, an image a column.")
    page.save(files["page"])
    return files


def winners_grid(result: dict[str, Any], folder: str | Path, pictures: int) -> Image.Image:
    """The winners of the first images, a cell a row."""
    import numpy as np
    import torch

    count = min(pictures, result["num"])

    def read(cell: str, index: int) -> torch.Tensor:
        pixels = np.asarray(Image.open(image_path(folder, cell, index)).convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255.0

    names = [cell["name"] for cell in result["cells"]]
    conditions = [str(result["conditions"][index % len(result["conditions"])]) for index in range(count)]
    return image_grid(
        [[read(name, index) for index in range(count)] for name in names], column_titles=conditions, row_titles=names
    )
