"""Files that are written whole or not at all, and folders that say what they hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vistok.errors import DataError, VistokError


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which appears under its name when it is written to the end; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Of a file's content, 64 hex digits; read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], *, most: int = 4) -> str:
    """Which of the ``new`` settings the ``old`` ones say otherwise: ``seed (3, now 4), ...``; "" if none."""
    differ = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key} ({_short(old.get(key))}, now {_short(new[key])})" for key in differ[:most])


def claim_settings(path: Path, settings: Mapping[str, Any], *, holds: str) -> bool:
    """Write what a folder's results depend on, or see that what is already there is the same.

    Args:
        path: of the settings, in the folder.
        settings: of JSON's values.
        holds: what errors say that the folder holds, as ``other searches``.
    Returns:
        whether they were there.
    Raises:
        DataError: what is there cannot be read.
        VistokError: it is something else.
    """
    if not path.exists():
        with whole_file(path) as file:
            file.write((json.dumps(settings, indent=2) + "\n").encode())
        return False
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; choose another folder") from error
    changed = changed_settings(old if isinstance(old, dict) else {}, settings)
    if changed:
        raise VistokError(f"{path.parent} holds {holds}: {changed}; choose another folder, or remove it")
    return True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
