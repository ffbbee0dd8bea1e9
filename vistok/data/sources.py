"""Sources: random access to pictures, labels and captions, opened from a short text (the spec).

Random access is what the stateless sampler needs, so there is no streaming source. A source knows
nothing of sizes or augmentation; that is ``vistok.data.dataset``.
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from typing import Literal, Protocol, get_args, runtime_checkable

from PIL import Image

from vistok.errors import DataError, nearest

Split = Literal["train", "val", "all"]
_LOOKED_AT = 64  # pictures that a content hash is made of

# prefix -> module with open_spec(rest, split, spec), form, example
_FORMS = {
    "emoji": ("vistok.data.embedded", "emoji:[CATEGORY]", "emoji:Smileys & Emotion"),
    "photos": ("vistok.data.embedded", "photos:[LABEL]", "photos:animals"),
    "folder": ("vistok.data.folder", "folder:PATH", "folder:/data/imagenet"),
    "wds": ("vistok.data.wds", "wds:SHARDS", "wds:/data/train-{000..127}.tar"),
    "hfds": ("vistok.data.hfds", "hfds:NAME[?split=S&image=COLUMN&label=COLUMN&caption=COLUMN]", "hfds:ylecun/mnist"),
    "npz": ("vistok.data.npz", "npz:FILE", "npz:outputs/samples/samples.npz"),
    "random": ("vistok.data.synthetic", "random:COUNT", "random:256"),
}


@runtime_checkable
class ImageSource(Protocol):
    """Random access to undecoded pictures.

    Attributes:
        classes: names of the classes, in order of their numbers; () where there are none. The
            same for every split of a source.
        spec: the text that it was opened from.
    """

    classes: tuple[str, ...]
    spec: str

    @property
    def num_classes(self) -> int:
        """Length of ``classes``."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The picture as 8-bit RGB; DataError if it cannot be read."""
        ...

    def label(self, index: int) -> int:
        """The number of its class, -1 if it has none."""
        ...

    def caption(self, index: int) -> str:
        """Its caption, "" if it has none."""
        ...

    def name(self, index: int) -> str:
        """A file name or id, unique in the source."""
        ...

    def listing_hash(self) -> str:
        """SHA-256 over the names in order; results record it."""
        ...

    def content_hash(self) -> str:
        """Changes with the pictures, as far as can be told quickly; what is kept of a source is found by it."""
        ...


class BaseSource(ABC):
    """What the sources have in common; a subclass gives ``__len__``, ``image`` and ``name``."""

    def __init__(self, spec: str, classes: tuple[str, ...] = ()) -> None:
        self.spec = spec
        self.classes = classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    def label(self, index: int) -> int:
        return -1

    def caption(self, index: int) -> str:
        return ""

    def listing_hash(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.name(index).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def content_hash(self) -> str:
        """SHA-256 over the names and some of the pictures, evenly spaced: sets made anew have the names of the old ones."""
        digest = hashlib.sha256(self.listing_hash().encode())
        for place in range(min(_LOOKED_AT, len(self))):
            try:
                picture = self.image(place * len(self) // min(_LOOKED_AT, len(self)))
                digest.update(f"{picture.size}".encode() + picture.tobytes())
            except DataError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}: {len(self)} pictures, {self.num_classes} classes)"


class NoValSplitError(DataError):
    """The source has no held-out part of its own; another source must be named for validation."""


def open_source(spec: str, *, split: Split = "all") -> ImageSource:
    """Open a source of pictures.

    Args:
        spec: one of

            - ``emoji:`` or ``emoji:Smileys & Emotion``: the embedded emoji, 64x64. Classes are
              the categories; within one category, its sub-categories. Captions are the names.
            - ``photos:`` or ``photos:animals``: the embedded photographs; classes are the labels.
            - ``folder:PATH``: pictures below a folder; classes are the names of its sub-folders.
            - ``wds:SHARDS``: local webdataset shards, by braces or globs ([data] extra).
            - ``hfds:NAME``: a data set of the Hugging Face hub, or a local folder of one, by
              timm's reader ([data] extra).
            - ``npz:FILE``: a batch of samples, ``arr_0`` uint8 [N, H, W, 3], as ``vistok generate`` and ADM write it.
            - ``random:COUNT``: made-up smooth pictures, for dry runs.
            - several of them: ``emoji: + 4*photos:``, where a number repeats a part in training.
        split: the embedded and random sets hold out about a tenth as ``val``. A folder has the
            parts ``PATH/train`` and ``PATH/val`` if they exist, else it is all one. Shards are
            always all one.
    Raises:
        DataError: unknown form, nothing found, unreadable.
        NoValSplitError: ``val`` of a source that holds nothing out.
        MissingExtraError: an optional package is not installed.
    """
    if split not in get_args(Split):
        raise DataError(f"a split is one of {', '.join(get_args(Split))}; got {split!r}")
    if " + " in spec:
        from vistok.data import mixed

        return mixed.open_spec(spec, split)
    prefix, colon, rest = spec.partition(":")
    if prefix == "tokens":
        raise DataError(f"{spec!r} holds tokens, on which generators are trained, and here pictures are wanted")
    if not colon or prefix not in _FORMS:
        forms = "\n".join(f"  {form}  as in  {example!r}" for _, form, example in _FORMS.values())
        hint = nearest(prefix, _FORMS) if colon else f"a folder of pictures is 'folder:{spec}'"
        raise DataError(f"unknown data source {spec!r} ({hint}). The forms are:\n{forms}")
    return importlib.import_module(_FORMS[prefix][0]).open_spec(rest, split, spec)


def held_out(key: str) -> bool:
    """Whether an item belongs to ``val``: once and for all, about one in ten, by the SHA-256 of its key."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 == 0


def in_split(key: str, split: Split) -> bool:
    """Whether an item belongs to a split, by ``held_out``."""
    return split == "all" or held_out(key) == (split == "val")
