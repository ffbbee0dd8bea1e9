"""vistok: one-dimensional and variable-length image and video tokenizers.

Load the published ones, train new ones, measure them, generate with them, search over their
tokens. Names are imported when first used, so that ``import vistok`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "TokenFile": "vistok.token_file",
    "TokenWriter": "vistok.token_file",
    "Tokens": "vistok.tokens",
    "VistokError": "vistok.errors",
    "create_model": "vistok.hub",
    "evaluate_curve": "vistok.metrics.curve",
    "evaluate_reconstruction": "vistok.metrics.reconstruction",
    "from_pretrained": "vistok.hub",
    "get_card": "vistok.registry",
    "list_models": "vistok.registry",
    "load_images": "vistok.data",
    "open_source": "vistok.data",
    "save_image": "vistok.report.grid",
    "search": "vistok.search",
    "train": "vistok.training",
}
__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from vistok.data import load_images, open_source
    from vistok.errors import VistokError
    from vistok.hub import create_model, from_pretrained
    from vistok.metrics.curve import evaluate_curve
    from vistok.metrics.reconstruction import evaluate_reconstruction
    from vistok.registry import get_card, list_models
    from vistok.report.grid import save_image
    from vistok.search import search
    from vistok.token_file import TokenFile, TokenWriter
    from vistok.tokens import Tokens
    from vistok.training import train


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vistok' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
