"""Files that are written whole or not at all, and folders that say what they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
