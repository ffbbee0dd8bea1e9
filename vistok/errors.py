"""Errors for users: each says what was wrong, what came, and what to do about it.

All are ``ValueError`` or ``ImportError`` too, so callers may catch the built-in classes.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class VistokError(ValueError):
    """A user's input cannot be used; the message says why and what to do."""


class ConfigError(VistokError):
    """A configuration names an unknown key, has a wrong type, or contradicts itself."""


class PublishedConfigError(ConfigError):
    """A published configuration names a class or a setting that vistok does not know."""


class CheckpointError(VistokError):
    """A checkpoint cannot be read, is not recognised, or does not fit its model."""


class DataError(VistokError):
    """A data set, image or label cannot be read or has the wrong form."""


class TokenFileError(VistokError):
    """A token file is truncated, corrupted or not a token file at all."""


class MissingExtraError(VistokError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: the module's import name.
        extra: the extra of vistok that installs it.
        purpose: what it is needed for, as the start of a sentence ("reading video").
    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module}, which is not installed: pip install 'vistok[{extra}]'"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what ``name`` might have meant: the closest known names, else all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
