"""``random:COUNT``: made-up pictures, so that any configuration can be tried without its data."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vistok.data.sources import BaseSource, Split
from vistok.errors import DataError

_SIDE, _GRID, _CLASSES = 64, 5, 10


def open_spec(rest: str, split: Split, spec: str) -> RandomSource:
    """Open ``random:COUNT``."""
    if not rest.isascii() or not rest.isdigit():
        raise DataError(f"{spec!r}: wants a number of pictures, as in 'random:256'")
    return RandomSource(int(rest), split=split)


class RandomSource(BaseSource):
    """Smooth random pictures, 64x64: picture i is the same in every process and on every machine.

    Classes take turns (ten of them). The last tenth is ``val``.

    Args:
        count: pictures in all, at least 2.
        split: ``train``, ``val`` or ``all``.
    Raises:
        DataError: fewer than two.
    """

    def __init__(self, count: int, *, split: Split = "all") -> None:
        if count < 2:
            raise DataError(f"random:{count} is too small to be divided; take at least 2 pictures")
        super().__init__(f"random:{count}", tuple(map(str, range(_CLASSES))))
        first_held_out = count - max(1, count // 10)
        self._range = {
            "train": range(first_held_out),
            "val": range(first_held_out, count),
            "all": range(count),
        }[split]

    def __len__(self) -> int:
        return len(self._range)

    def image(self, index: int) -> Image.Image:
        # A hash is the same with every version of every library; a random generator need not be.
        noise = hashlib.shake_128(self.name(index).encode()).digest(_GRID * _GRID * 3)
        grid = np.frombuffer(noise, dtype=np.uint8).reshape(_GRID, _GRID, 3)
        return Image.fromarray(grid).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

    def label(self, index: int) -> int:
        return self._range[index] % _CLASSES

    def caption(self, index: int) -> str:
        return f"random picture {self._range[index]}"

    def name(self, index: int) -> str:
        return f"random-{self._range[index]:08d}"
