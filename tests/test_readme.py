"""The README says what is true: its table is the registry's, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vistok.registry import markdown_table

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_table_of_models_is_the_registrys() -> None:
    table = README.split("<!-- table: vistok models --markdown -->\n")[1].split("<!-- end of table -->")[0]
    assert table == markdown_table(), "run: vistok models --markdown, and put its table into README.md"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["decoded"].shape == (4, 3, 64, 64)
    assert (tmp_path / "photo.png").is_file()
