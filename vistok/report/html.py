"""One self-contained HTML page: text, tables, commands, plots and pictures, nothing fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from vistok.errors import VistokError
from vistok.report.plots import Svg
from vistok.report.table import numeric_columns

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #59636e; --line: #d8dee4; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --paper: #14171b; --soft: #9aa5b1; --line: #333a42; --box: #1d2228; }
}
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 2.5rem auto 5rem; padding: 0 1.25rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; margin: .8rem 0; } .subtitle { color: var(--soft); font-size: 1.08rem; margin-top: 0; }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem 1.6rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .93rem; } .number { text-align: right; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: .86rem/1.55 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
figure { margin: 1.3rem 0; } figcaption { color: var(--soft); font-size: .93rem; max-width: 46rem; margin-top: .4rem; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.4rem; margin: 1.3rem 0; }
.plots svg { width: 100%; height: auto; max-width: 44rem; }
"""


class Page:
    """Collects a page from top to bottom; every text is escaped.

    Args:
        title: of the page.
        subtitle: a line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="subtitle">{escape(subtitle)}</p>')

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def commands(self, text: str) -> None:
        """Lines to type."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; columns of numbers are lined up on the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        kinds = [' class="number"' if numeric else "" for numeric in numeric_columns(cells, len(header))]
        head = "".join(f"<th{kind}>{escape(str(cell))}</th>" for cell, kind in zip(header, kinds, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
            for row in cells
        )
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def picture(self, image: Image.Image, caption: str) -> None:
        """A picture with a caption, inside the page."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        self._parts.append(
            f'<figure><img alt="{escape(caption)}" width="{image.width}" height="{image.height}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def plots(self, *plots: Svg) -> None:
        """Plots of ``vistok.report.plots``, side by side where there is room.

        Raises:
            VistokError: anything else, which would come into the page unescaped.
        """
        for plot in plots:
            if not isinstance(plot, Svg):
                raise VistokError(f"a page takes plots made by vistok.report.plots, got {type(plot).__name__}")
        self._parts.append(f'<div class="plots">{"".join(plots)}</div>')

    def to_html(self) -> str:
        """The whole page."""
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.to_html(), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
