"""Where the embedded data is: inside the installed package, or at the top of a clone."""

from __future__ import annotations

from pathlib import Path

import vistok
from vistok.errors import DataError


def asset_path(name: str) -> Path:
    """The path of an embedded file or folder.

    Args:
        name: relative to ``assets/``, as in ``emoji/emoji.webp``.
    Raises:
        DataError: it is not there, so the installation is incomplete.
    """
    package = Path(vistok.__file__).resolve().parent
    for root in (package / "assets", package.parent / "assets"):  # a wheel, a clone
        if (root / name).exists():
            return root / name
    raise DataError(f"the embedded data {name!r} is missing beside {package}; install vistok again, or clone it whole")
