"""What the demos share: timed parts, which pictures are shown, and grids of samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from vistok.data import load_images
from vistok.data.sources import ImageSource
from vistok.report.grid import image_grid

Out = TypeVar("Out")
_COLUMNS = 8


class Parts:
    """Calls one part after the other, says which, and keeps how long each took.

    Args:
        total: how many there will be.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[..., Out], *args: Any, **kwargs: Any) -> Out:
        """``function``'s result."""
        print(f"[{len(self.seconds) + 1}/{self.total}] {name}", flush=True)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = time.perf_counter() - start
        return result


def some_images(source: ImageSource, count: int, *, like: Any) -> Tensor:
    """Evenly chosen pictures of a source [B, 3, H, W], prepared as ``like`` wants them; all where it has fewer."""
    stride = max(1, len(source) // count)
    return load_images([source.image(index * stride) for index in range(min(count, len(source)))], like=like)


def sample_grid(images: Tensor, conditions: Sequence[str], *, columns: int = _COLUMNS) -> Image.Image:
    """Samples with their conditions below."""
    rows = [list(images[start : start + columns]) for start in range(0, len(images), columns)]
    texts = [conditions[start : start + columns] for start in range(0, len(images), columns)]
    short = [[text.removeprefix("face-") for text in row] for row in texts]
    return image_grid(rows, captions=short, scale=2)
