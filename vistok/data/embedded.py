"""The two sets that come with vistok: 1,911 Noto emoji and 228 photographs (see ``assets/README.md``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from vistok.data.assets import asset_path
from vistok.data.images import read_image
from vistok.data.sources import BaseSource, Split, in_split
from vistok.errors import DataError, nearest

Item = dict[str, Any]


def open_spec(rest: str, split: Split, spec: str) -> BaseSource:
    """Open ``emoji:[category]`` or ``photos:[label]``."""
    return EmojiSource(rest, split=split) if spec.startswith("emoji:") else PhotoSource(rest, split=split)


class _EmbeddedSource(BaseSource):
    def __init__(self, spec: str, items: Sequence[Item], *, class_key: str, id_key: str, split: Split) -> None:
        # The classes are numbered before the split, so that both parts agree on the numbers.
        super().__init__(spec, tuple(sorted({item[class_key] for item in items})))
        self._items = [item for item in items if in_split(item[id_key], split)]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = [numbers[item[class_key]] for item in self._items]
        self._id_key = id_key

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> int:
        return self._labels[index]

    def name(self, index: int) -> str:
        return self._items[index][self._id_key]


class EmojiSource(_EmbeddedSource):
    """Noto emoji, 64x64 on white; named by their code points, captioned by their names in lower case.

    Args:
        category: only this one, and classes are its sub-categories; "" takes all, and classes are
            the categories.
        split: by the hash of the code points.
    Raises:
        DataError: unknown category.
    """

    def __init__(self, category: str = "", *, split: Split = "all") -> None:
        items = _only(_index("emoji/emoji.json")["items"], "category", category, "emoji")
        class_key = "subcategory" if category else "category"
        super().__init__(f"emoji:{category}", items, class_key=class_key, id_key="codepoints", split=split)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_emoji_tiles()[self._items[index]["index"]])

    def caption(self, index: int) -> str:
        return self._items[index]["name"].lower()


class PhotoSource(_EmbeddedSource):
    """Public-domain photographs, short side at most 256 pixels; classes are the labels, no captions.

    Args:
        label: only the pictures of this label; "" takes all.
        split: by the hash of the file name.
    Raises:
        DataError: unknown label.
    """

    def __init__(self, label: str = "", *, split: Split = "all") -> None:
        items = _only(_index("photos/photos.json")["items"], "label", label, "photos")
        super().__init__(f"photos:{label}", items, class_key="label", id_key="file", split=split)

    def image(self, index: int) -> Image.Image:
        return _photo(self._items[index]["file"]).copy()


def _only(items: Sequence[Item], key: str, wanted: str, prefix: str) -> list[Item]:
    known = {item[key] for item in items}
    if wanted and wanted not in known:
        close = nearest(wanted, known)
        everything = "" if close.startswith("known") else f"; known: {', '.join(sorted(known))}"
        raise DataError(f"there is no {key} {wanted!r} among the {prefix}; {close}{everything}")
    return [item for item in items if not wanted or item[key] == wanted]


@cache
def _index(name: str) -> dict[str, Any]:
    return json.loads(asset_path(name).read_text(encoding="utf-8"))


@cache
def _emoji_tiles() -> np.ndarray:
    """All emoji as one array [1920, 64, 64, 3]; decoded once a process (0.3 s)."""
    index = _index("emoji/emoji.json")
    side, columns = index["tile"], index["columns"]
    atlas = np.asarray(read_image(asset_path("emoji/emoji.webp")))
    tiles = atlas.reshape(-1, side, columns, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(-1, side, side, 3)


@cache
def _photo(file: str) -> Image.Image:
    """A photograph, decoded once a process: all of them are 50 MB, and decoding takes longer than a training step on one."""
    return read_image(asset_path("photos") / file)
