"""Names of models that are compared on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
