"""The HTML page, tables."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vistok.errors import VistokError
from vistok.report.html import Page
from vistok.report.plots import line_plot
from vistok.report.table import markdown_table, text_table

EVIL = "<script>alert(\"1\")</script> & 'so'"


class Checker(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_text_is_escaped_and_nothing_is_fetched():
    page = Page(EVIL, EVIL)
    page.heading(EVIL)
    page.text(EVIL)
    page.commands(EVIL)
    page.table([EVIL, "n"], [[EVIL, 1], [None, 2.5]])
    page.picture(Image.new("RGB", (9, 5), (255, 0, 0)), EVIL)
    page.plots(line_plot({EVIL: ([1, 2], [3, 4]), "b": ([1], [2])}, title=EVIL, x_label=EVIL, y_label=EVIL))
    html = page.to_html()
    checked = Checker(html)
    assert checked.open == [] and "script" not in checked.tags
    assert checked.words.count(EVIL) >= 10
    assert checked.links and all(link.startswith("data:") for link in checked.links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", html)
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    assert Image.open(io.BytesIO(data)).size == (9, 5)


def test_only_our_own_plots_come_in_unescaped():
    with pytest.raises(VistokError, match="made by vistok"):
        Page("x").plots("<svg onload='alert(1)'></svg>")


def test_pages_are_saved_whole(tmp_path):
    page = Page("a title")
    path = tmp_path / "deep" / "report.html"
    page.save(path)
    assert path.read_text(encoding="utf-8") == page.to_html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_numbers_are_lined_up_on_the_right():
    table = text_table(["name", "PSNR"], [["a", 9.5], ["long name", "-"], ["b", 19.25]])
    assert table.splitlines() == [
        "name        PSNR",
        "---------  -----",
        "a            9.5",
        "long name      -",
        "b          19.25",
    ]
    assert text_table(["a"], []) == "a\n-"


def test_markdown_cells_cannot_break_the_table():
    table = markdown_table(["a|b", "n"], [["x\ny", 3], ["z", "45%"]])
    assert table.splitlines() == ["| a\\|b | n |", "| --- | ---: |", "| x y | 3 |", "| z | 45% |"]
