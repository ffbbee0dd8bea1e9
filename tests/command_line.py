"""Running ``vistok`` in this process, and what a refused command must leave behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vistok.cli import main

GOOD = ("odd.png", "line.png", "grey.jpg", "palette.gif", "alpha.png", "turned.png")


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(rows / 9 + k) * np.cos(columns / (7 + k)) for k in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The result of a command that works; nothing but JSON may be on its standard output."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail: status 2, one error, no traceback, no file made or changed. The error's text."""
    before = listing(Path.cwd())
    capsys.readouterr()
    try:
        status = run(*arguments)
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2, captured
    assert "Traceback" not in captured.err + captured.out
    errors = re.findall(r"^vistok[a-z ]*: error: .+$", captured.err, flags=re.MULTILINE)
    assert len(errors) == 1, captured.err
    assert captured.out == ""
    assert listing(Path.cwd()) == before
    return captured.err[captured.err.index(errors[0]) :]
