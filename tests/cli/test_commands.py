"""What all commands have in common: help, errors, interruption."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import listing, refused, run

from vistok.cli import build_parser


def _commands(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[str]:
    """All that can be called, as ``eval recon``: whatever takes no further command."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield " ".join(before)
    for action in nested:
        for name, inner in action.choices.items():
            yield from _commands(inner, (*before, name))


COMMANDS = tuple(_commands(build_parser()))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*command.split(), "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "example" in text and f"vistok {command}" in text.split("example", 1)[1]
    for line in text.split("example", 1)[1].splitlines():
        if line.strip().startswith("vistok "):
            build_parser().parse_args(shlex.split(line, comments=True)[1:])
    if command != "demo":
        assert "--json" in text and "--debug" in text


def test_the_first_page_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(re.search(rf"^ +{command.split()[0]}\b", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("eval",), ("nonsense",), ("models", "--nonsense"), ("info",)])
def test_wrong_command_lines(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], work: Path) -> None:
    refused(capsys, *arguments)


def test_the_installed_command_gives_the_status(work: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "vistok.cli", "info", "nowhere.vtk"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("vistok: error: ") and len(process.stderr.splitlines()) == 1


def test_errors_as_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "nowhere", "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": captured.err[len("vistok: error: ") : -1], "kind": "CheckpointError"}


def test_debug_shows_where_an_error_comes_from(work: Path) -> None:
    from vistok.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run("info", "nowhere", "--debug")


def test_an_interrupted_command_says_so(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vistok.hub.from_pretrained", interrupt)
    assert run("encode", "odd.png", "--model", models / "ordered", "--out", "x.vtk") == 130
    assert capsys.readouterr().err == "interrupted\n" and not Path("x.vtk").exists()


def test_an_interrupted_write_leaves_the_old_file(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", models / "ordered")
    assert run("encode", "odd.png", *model, "--out", "x.vtk") == 0
    assert run("reconstruct", "odd.png", *model, "--out", "x.png") == 0
    before = listing(work)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert run("encode", "alpha.png", *model, "--out", "x.vtk") == 2
    assert run("reconstruct", "alpha.png", *model, "--out", "x.png") == 2
    assert listing(work) == before
