"""Reading arguments that several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistok.errors import VistokError


def named_models(models: Sequence[str]) -> list[tuple[str, str]]:
    """Names for a result, and where the models are.

    Args:
        models: each ``NAME=MODEL``, or ``MODEL``, whose last part is its name.
    Raises:
        VistokError: two of one name, or one without.
    """
    out: list[tuple[str, str]] = []
    for text in models:
        name, equals, where = text.partition("=")
        if not equals:
            path = Path(text)
            # runs/NAME/final is named after its run.
            name, where = (path.parent.name if path.name == "final" and path.parent.name else path.name), text
        out.append((name, where))
    names = [name for name, _ in out]
    if "" in names or len(set(names)) < len(names):
        raise VistokError(f"the models need names of their own, got {', '.join(names)}; write --model NAME=MODEL")
    return out


def option_value(text: str, *, flag: str, example: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a name and what YAML reads in the value.

    Args:
        text: as it was typed.
        flag, example: for the message.
    Raises:
        VistokError: no such pair.
    """
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise VistokError(f"{flag} takes OPTION=VALUE, as {example}; got {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise VistokError(f"{flag} {text!r}: the value is not valid YAML") from error
