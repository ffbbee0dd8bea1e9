"""Conditions as texts, for verifiers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vistok.errors import VistokError


def condition_texts(condition: Sequence[Any], class_names: Sequence[str], name: str) -> list[str]:
    """The texts of conditions: texts as they are, class numbers by their names.

    Args:
        condition: N of them.
        class_names: by number.
        name: of the verifier, for the message.
    Raises:
        VistokError: a condition that is no text and has no name.
    """
    return [_text(entry, class_names, name) for entry in condition]


def _text(entry: Any, class_names: Sequence[str], name: str) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(class_names):
        return class_names[entry]
    raise VistokError(
        f"the verifier {name} reads texts, or class numbers of which it has {len(class_names)} names; got {entry!r}"
    )
