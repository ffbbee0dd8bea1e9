"""``folder:PATH``: pictures below a folder, with its sub-folders as classes.

``PATH/dog/1.jpg`` has the class ``dog``, however deep it lies; pictures directly in PATH have none.
``1.txt`` beside ``1.jpg`` is its caption. Other files, and files and folders whose names begin with
a dot, are ignored.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from vistok.data.images import IMAGE_SUFFIXES, read_image
from vistok.data.sources import BaseSource, NoValSplitError, Split
from vistok.errors import DataError

logger = logging.getLogger(__name__)

_SPLITS = ("train", "val")


def open_spec(rest: str, split: Split, spec: str) -> FolderSource:
    """Open ``folder:PATH``."""
    if not rest:
        raise DataError("'folder:' wants a path behind it, as in 'folder:/data/imagenet'")
    return FolderSource(rest, split=split)


class FolderSource(BaseSource):
    """Pictures below a folder.

    Args:
        path: the folder; ``~`` is understood.
        split: where PATH consists of ``train``, ``val`` (and ``test``), the part of that name, and
            ``all`` means both; else PATH is one whole and has no ``val``.
    Raises:
        DataError: no such folder, or no pictures in it.
        NoValSplitError: ``val`` of a folder without ``PATH/val``.
    """

    def __init__(self, path: str | Path, *, split: Split = "all") -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            what = "is a file, not a folder" if self.path.exists() else "does not exist"
            raise DataError(f"the folder of pictures {path} {what}")
        parts = [name for name in _SPLITS if (self.path / name).is_dir()]
        divided = _is_divided(self.path, parts)
        if divided:
            wanted = [name for name in _SPLITS if split in (name, "all") and name in parts]
            roots, class_roots = [self.path / name for name in wanted], [self.path / name for name in parts]
        else:
            roots = class_roots = [self.path] if split != "val" else []
        if not roots:
            raise (NoValSplitError if split == "val" else DataError)(
                f"the folder {path} has no {split!r} part: make {self.path / split}, "
                "or name another source for validation (data.val in a configuration)"
            )
        self._files: list[str] = []  # relative to path, with "/"
        self._with_caption: set[str] = set()
        for root in roots:
            self._scan(root)
        self._files.sort()
        if not self._files:
            where = ", ".join(map(str, roots))
            raise DataError(f"there are no pictures in {where}; looked for {', '.join(IMAGE_SUFFIXES)} at any depth")
        # Both parts count, so that train and val agree on the numbers even where one lacks a class.
        super().__init__(f"folder:{path}", tuple(sorted({name for root in class_roots for name in _class_names(root)})))
        self._depth = 1 if divided else 0
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        loose = sum(self.label(index) < 0 for index in range(len(self))) if self.classes else 0
        if loose:
            logger.warning("%s: %d pictures lie outside the class folders and have no label", self.spec, loose)

    def __len__(self) -> int:
        return len(self._files)

    def image(self, index: int) -> Image.Image:
        return read_image(self.path / self._files[index])

    def label(self, index: int) -> int:
        parts = self._files[index].split("/")[self._depth :]
        return self._numbers[parts[0]] if len(parts) > 1 else -1

    def caption(self, index: int) -> str:
        stem = os.path.splitext(self._files[index])[0]
        if stem not in self._with_caption:
            return ""
        try:
            return (self.path / f"{stem}.txt").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the caption {self.path / stem}.txt: {error}") from error

    def name(self, index: int) -> str:
        return self._files[index]

    def content_hash(self) -> str:
        """SHA-256 over names, sizes and times of all files."""
        digest = hashlib.sha256()
        for file in self._files:
            try:
                facts = (self.path / file).stat()
                size, time = facts.st_size, facts.st_mtime_ns
            except OSError:  # gone: an error when it is read
                size = time = -1
            digest.update(f"{file}\0{size}\0{time}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _scan(self, root: Path) -> None:
        stems, texts = set(), set()
        for folder, files in _walk(root):
            start = Path(folder).relative_to(self.path).as_posix()
            for file in files:
                relative = file if start == "." else f"{start}/{file}"
                stem, extension = os.path.splitext(relative)
                if extension.lower() in IMAGE_SUFFIXES:
                    self._files.append(relative)
                    stems.add(stem)
                elif extension == ".txt":
                    texts.add(stem)
        self._with_caption |= stems & texts


def _is_divided(path: Path, parts: list[str]) -> bool:
    """Whether PATH/train and PATH/val are parts; one of them alone may be a class ("train" beside "bus")."""
    if len(parts) != 1:
        return bool(parts)
    return set(_class_names(path)) <= {*_SPLITS, "test"}


def _class_names(root: Path) -> list[str]:
    folders = (entry for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    return [entry.name for entry in folders if _holds_picture(entry.path)]


def _holds_picture(folder: str) -> bool:
    # The first picture decides: a class folder of thousands is not listed to its end a second time.
    with os.scandir(folder) as entries:
        if any(_is_picture(entry.name) and not entry.name.startswith(".") for entry in entries):
            return True
    return any(_is_picture(file) for _, files in _walk(Path(folder)) for file in files)


def _is_picture(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and their files, through links (data sets are often linked together), each folder once."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            seen.add(real)
            yield folder, [file for file in files if not file.startswith(".")]
