"""Several sources as one: ``emoji: + 4*photos:``."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from PIL import Image

from vistok.data.sources import BaseSource, ImageSource, Split, open_source
from vistok.errors import DataError

SEPARATOR = " + "
_TIMES = re.compile(r"(\d+)\*(.+)", re.DOTALL)


def open_spec(spec: str, split: Split) -> MixedSource:
    """Open the parts of ``SOURCE + SOURCE ...``; ``N*SOURCE`` counts each of its pictures N times in training."""
    sources, times = [], []
    for part in spec.split(SEPARATOR):
        match = _TIMES.fullmatch(part.strip())
        count = int(match[1]) if match else 1
        if count < 1:
            raise DataError(f"{part!r} in {spec!r}: a source counts once or more")
        sources.append(open_source(match[2] if match else part.strip(), split=split))
        times.append(count if split == "train" else 1)
    return MixedSource(spec, sources, times)


class MixedSource(BaseSource):
    """One source after the other. Classes of one name are one class.

    Args:
        spec: the text that it was opened from.
        sources: the parts.
        times: how often each part is repeated.
    """

    def __init__(self, spec: str, sources: Sequence[ImageSource], times: Sequence[int]) -> None:
        super().__init__(spec, tuple(dict.fromkeys(name for source in sources for name in source.classes)))
        self._parts = [source for source, count in zip(sources, times, strict=True) for _ in range(count)]
        self._rounds = [turn for count in times for turn in range(count)]
        self._ends = list(accumulate(len(source) for source in self._parts))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._numbers = [[numbers[name] for name in source.classes] for source in self._parts]

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """The part of a picture, and its place there."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def image(self, index: int) -> Image.Image:
        part, place = self._find(index)
        return self._parts[part].image(place)

    def label(self, index: int) -> int:
        part, place = self._find(index)
        label = self._parts[part].label(place)
        return self._numbers[part][label] if label >= 0 else label

    def caption(self, index: int) -> str:
        part, place = self._find(index)
        return self._parts[part].caption(place)

    def name(self, index: int) -> str:
        part, place = self._find(index)
        again = f"#{self._rounds[part]}" if self._rounds[part] else ""
        return f"{self._parts[part].spec}/{self._parts[part].name(place)}{again}"

    def content_hash(self) -> str:
        return hashlib.sha256(" ".join(part.content_hash() for part in self._parts).encode()).hexdigest()
