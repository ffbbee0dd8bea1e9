"""One self-contained HTML page: text, tables, commands, plots and pictures, nothing fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; margin-bottom: .2rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #8884; padding-bottom: .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid #8883; text-align: left; }
pre { background: #8881; padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem; font-size: .88rem; }
figure { margin: 1.2rem 0; } figcaption { opacity: .75; font-size: .93rem; max-width: 46rem; }
img { max-width: 100%; height: auto; } svg { max-width: 100%; height: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


class Page:
    """Collects a page from top to bottom; every text is escaped.

    Args:
        title: of the page.
        subtitle: a line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(subtitle)}</p>" if subtitle else ""]

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def commands(self, text: str) -> None:
        """Lines to type."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table."""
        head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, image: Image.Image, caption: str) -> None:
        """A picture with a caption, inside the page."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        alt = escape(caption, quote=True)
        self._parts.append(
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def plots(self, *svgs: str) -> None:
        """Plots of ``vistok.report.plots`` side by side."""
        self._parts.append(f'<div class="row">{"".join(svgs)}</div>')

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{escape(self.title)}</title><style>{_STYLE}</style></head>'
            f"<body>{''.join(self._parts)}</body></html>"
        )
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
