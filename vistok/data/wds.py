"""``wds:SHARDS``: webdataset shards on a local disk, with random access.

webdataset itself streams shards in an order of its own; a run that must resume exactly, and be the
same on any number of processes, needs picture i when it asks for it. So the members of all shards
are indexed when the source is opened (some seconds for a million), and read where they lie.

Members of one sample follow each other and share their name up to the first dot. Used are one
picture (``jpg``, ``jpeg``, ``png``, ``webp``), ``cls`` (a class number), ``txt`` (a caption), and
from ``json`` the keys ``label`` and ``caption``, where ``cls`` or ``txt`` are missing.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import mmap
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vistok.data.images import read_image
from vistok.data.sources import BaseSource, NoValSplitError, Split
from vistok.data.tar_index import mapped, tar_members
from vistok.errors import DataError, require

logger = logging.getLogger(__name__)

_PICTURES = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt", "json")
_MAX_CLASSES = 1 << 20

Member = tuple[int, int]  # offset, size


def open_spec(rest: str, split: Split, spec: str) -> WdsSource:
    """Open ``wds:SHARDS``."""
    if split == "val":
        raise NoValSplitError(f"{spec!r} holds nothing out: name other shards for validation (data.val)")
    return WdsSource(rest)


class WdsSource(BaseSource):
    """The samples of local tar shards, in order of the shards.

    Args:
        pattern: paths with braces (``{000..127}``), ``::`` between several, and globs.
    Raises:
        DataError: no shard, a remote or compressed or damaged one, no pictures, bad labels.
        MissingExtraError: webdataset is not installed.
    """

    def __init__(self, pattern: str) -> None:
        self.shards = _expand(pattern)
        names = [shard.name for shard in self.shards]
        self._shard_names = names if len(set(names)) == len(names) else list(map(str, self.shards))
        self._keys: list[str] = []
        # Flat arrays, not an object a sample: there may be many millions, in every worker.
        self._shard, self._label = array("i"), array("i")
        self._picture, self._caption = (array("q"), array("q")), (array("q"), array("q"))
        self._caption_is_json = bytearray()
        self._without_picture = 0
        for number, shard in enumerate(self.shards):
            self._index_shard(number, shard)
        if not self._keys:
            raise DataError(f"there are no pictures in {pattern!r}; looked for members named .{', .'.join(_PICTURES)}")
        if self._without_picture:
            logger.warning("wds:%s: %d samples without a picture are left out", pattern, self._without_picture)
        # Shards hold numbers only; the highest one tells how many classes there are.
        super().__init__(f"wds:{pattern}", tuple(map(str, range(max(self._label) + 1))))

    def __len__(self) -> int:
        return len(self._keys)

    def image(self, index: int) -> Image.Image:
        return read_image(io.BytesIO(self._read(index, self._picture)), name=self.name(index))

    def label(self, index: int) -> int:
        return self._label[index]

    def caption(self, index: int) -> str:
        if self._caption[1][index] < 0:
            return ""
        data = self._read(index, self._caption)
        if self._caption_is_json[index]:
            return str(_read_json(data, self.name(index)).get("caption") or "").strip()
        return _decode(data, self.name(index)).strip()

    def name(self, index: int) -> str:
        return f"{self._shard_names[self._shard[index]]}/{self._keys[index]}"

    def _read(self, index: int, where: tuple[array, array]) -> bytes:
        # Opened for each read: an open file shared by forked workers would share its position.
        shard = self.shards[self._shard[index]]
        try:
            with open(shard, "rb") as file:
                file.seek(where[0][index])
                return file.read(where[1][index])
        except OSError as error:
            raise DataError(f"cannot read {self.name(index)} from {shard}: {error}") from error

    def _index_shard(self, number: int, shard: Path) -> None:
        base_plus_ext: Callable[[str], tuple[str | None, str | None]]
        base_plus_ext = require("webdataset.tariterators", extra="data", purpose="reading shards").base_plus_ext
        key, members = "", {}
        with mapped(shard) as data:
            for name, offset, size in tar_members(data, shard):
                base, extension = base_plus_ext(name)
                if base is None or extension is None:
                    continue
                if base != key:
                    self._add_sample(data, number, key, members)
                    key, members = base, {}
                members[extension.lower()] = (offset, size)
            self._add_sample(data, number, key, members)

    def _add_sample(self, data: mmap.mmap, number: int, key: str, members: dict[str, Member]) -> None:
        picture = next((members[name] for name in _PICTURES if name in members), None)
        if picture is None:
            self._without_picture += bool(members)
            return
        caption_kind = next((name for name in _CAPTIONS if name in members), "")
        self._keys.append(key)
        self._shard.append(number)
        self._label.append(_read_label(data, members, f"{self._shard_names[number]}/{key}"))
        self._caption_is_json.append(caption_kind == "json")
        for arrays, member in ((self._picture, picture), (self._caption, members.get(caption_kind, (0, -1)))):
            arrays[0].append(member[0])
            arrays[1].append(member[1])


def _expand(pattern: str) -> list[Path]:
    shardlists = require("webdataset.shardlists", extra="data", purpose="reading shards")
    if not pattern:
        raise DataError("'wds:' wants shards behind it, as in 'wds:/data/train-{000..127}.tar'")
    shards: list[Path] = []
    for name in shardlists.expand_urls(pattern):
        if "://" in name or name.startswith("pipe:"):
            raise DataError(f"{name!r} is not on a local disk; random access needs local shards: copy them first")
        found = sorted(glob.glob(str(Path(name).expanduser())))
        if not found:
            raise DataError(f"there is no shard {name!r}")
        shards += map(Path, found)
    return shards


def _read_label(data: mmap.mmap, members: dict[str, Member], name: str) -> int:
    """The class number from ``cls`` or ``json``, -1 if neither has one."""
    kind = next((kind for kind in ("cls", "json") if kind in members), "")
    if not kind:
        return -1
    offset, size = members[kind]
    text = data[offset : offset + size]
    value = text.strip() if kind == "cls" else _read_json(text, name).get("label", -1)
    try:
        label = int(value)
    except (TypeError, ValueError):
        label = -2
    if not -1 <= label < _MAX_CLASSES:
        raise DataError(f"{name}.{kind}: a label is a class number from 0 to {_MAX_CLASSES - 1}, got {value!r}")
    return label


def _read_json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{name}.json is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{name}.json holds no keys and values but {type(value).__name__}")
    return value


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}.txt is not UTF-8: {error}") from error
