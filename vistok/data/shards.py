"""Tar shards in webdataset form with random access, so that the order of data stays a function of the step.

The webdataset package streams shards in an order of its own; here their members are listed once,
with the standard library, and read by offset. (The package is still what the form is named after and
tested with.)
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from pathlib import Path

from PIL import Image

from vistok.data.images import IMAGE_SUFFIXES, read_image
from vistok.data.sources import ImageSource
from vistok.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardSource(ImageSource):
    """Local tar shards whose samples are ``KEY.jpg`` with ``KEY.cls``, ``KEY.txt`` or ``KEY.json`` beside.

    Args:
        pattern: a glob or ``{000..123}`` range; a part ``SPLIT`` in it stands for the split's name.
        split: see ``open_source``.
    """

    def __init__(self, pattern: str, split: str) -> None:
        if split == "val" and "SPLIT" not in pattern:
            raise DataError(
                f"wds:{pattern} has no validation split; write SPLIT where the shards' names have train or val"
            )
        paths = _expand(pattern.replace("SPLIT", "train" if split == "all" else split))
        if not paths:
            raise DataError(f"there are no shards {pattern}")
        # Path, key, and where the bytes of each suffix lie: (offset, size).
        self._samples: list[tuple[str, str, dict[str, tuple[int, int]]]] = []
        for path in paths:
            for key, parts in _list_members(path).items():
                if IMAGE_SUFFIXES & parts.keys():
                    self._samples.append((path, key, parts))
        labels = {self.label(index) for index in range(len(self))} - {-1}
        self.classes = tuple(str(number) for number in range(max(labels, default=-1) + 1))

    def __len__(self) -> int:
        return len(self._samples)

    def image(self, index: int) -> Image.Image:
        parts = self._samples[index][2]
        suffix = next(iter(sorted(IMAGE_SUFFIXES & parts.keys())))
        return read_image(self._bytes(index, suffix))

    def name(self, index: int) -> str:
        path, key, _ = self._samples[index]
        return f"{Path(path).name}/{key}"

    def label(self, index: int) -> int:
        text = self._bytes(index, ".cls") or b"-1"
        try:
            return int(text)
        except ValueError as error:
            raise DataError(f"{self.name(index)}.cls is not a class number: {text[:40]!r}") from error

    def caption(self, index: int) -> str:
        text = self._bytes(index, ".txt")
        if text:
            return text.decode("utf-8", errors="replace").strip()
        data = self._bytes(index, ".json")
        return str(json.loads(data).get("caption", "")) if data else ""

    def _bytes(self, index: int, suffix: str) -> bytes:
        path, _, parts = self._samples[index]
        if suffix not in parts:
            return b""
        offset, size = parts[suffix]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def _list_members(path: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Samples of a shard by key, in the order of the file: suffix -> (offset, size)."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if member.isfile():
                    samples.setdefault(key, {})["." + suffix.lower()] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"the shard {path} cannot be read as an uncompressed tar: {type(error).__name__}: {error}"
        ) from error
    return samples


def _expand(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [p for p in [pattern] if Path(p).is_file()]
    first, last = match[1], match[2]
    paths = [
        f"{pattern[: match.start()]}{n:0{len(first)}d}{pattern[match.end() :]}"
        for n in range(int(first), int(last) + 1)
    ]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DataError(f"{len(missing)} shards of {pattern} are missing, the first is {missing[0]}")
    return paths
