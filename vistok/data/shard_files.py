"""What a folder of token shards consists of: ``manifest.json``, and for each shard its tokens and its facts.

- ``shard-00000.vtk``: the tokens, the views of a picture side by side (``vistok.token_file``).
- ``shard-00000.npz``: arrays of its pictures: ``index`` in their source, ``label`` (-1 for none), and ``text`` and ``ends``, their
  captions as UTF-8 bytes one behind the other, and where each ends.
- ``manifest.json``: the ``recipe``, on which alone the tokens depend; class names; of each shard the number of its pictures, the
  SHA-256 of its files, and the names of the pictures that could not be read; and its own SHA-256.

While it is being written there is also ``shard-00000.json`` for each shard that is finished: what the manifest will say of it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vistok.errors import DataError
from vistok.files import file_sha256, whole_file

MANIFEST = "manifest.json"
FORMAT = 1
_KIND = "token shards"
_FACTS = ("index", "label", "text", "ends")


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a shard.

    Attributes:
        number: of the shard.
        pictures: in it, without those that could not be read; 0 if it has no files.
        tokens_sha256, facts_sha256: of its files.
        unreadable: names of pictures that could not be read.
    """

    number: int
    pictures: int
    tokens_sha256: str
    facts_sha256: str
    unreadable: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any) -> ShardRecord:
        """Out of JSON.

        Raises:
            ValueError: it is no such record.
        """
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"no record of a shard: {values!r}")
        whole = type(values["number"]) is int and type(values["pictures"]) is int and values["pictures"] >= 0
        texts = [values["tokens_sha256"], values["facts_sha256"], *values["unreadable"]]
        if not whole or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"no record of a shard: {values!r}")
        return cls(**values | {"unreadable": tuple(values["unreadable"])})

    def damage(self, folder: Path) -> str:
        """What is wrong with the files of the shard, "" if nothing is; reads all of them."""
        if not self.pictures:
            return ""
        pairs = ((tokens_path, self.tokens_sha256), (facts_path, self.facts_sha256))
        for path, wanted in ((where(folder, self.number), wanted) for where, wanted in pairs):
            if not path.exists():
                return f"{path.name} is missing"
            if file_sha256(path) != wanted:
                return f"{path.name} is damaged: its SHA-256 is not that of the manifest"
        return ""


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        recipe: what the tokens depend on.
        classes: names of the classes, () for none.
        shards: of all shards, in order; () while the folder is being written.
    """

    recipe: Mapping[str, Any]
    classes: tuple[str, ...]
    shards: tuple[ShardRecord, ...] = ()

    @property
    def pictures(self) -> int:
        """In all shards."""
        return sum(shard.pictures for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        with whole_file(folder / MANIFEST) as file:
            file.write(self._encode())

    def _encode(self) -> bytes:
        views = self.recipe["num_views"]
        content = {
            "kind": _KIND,
            "format": FORMAT,
            "complete": bool(self.shards),
            "pictures": self.pictures,
            "rows": self.pictures * views,
            "unreadable": sum(len(shard.unreadable) for shard in self.shards),
            "recipe": dict(self.recipe),
            "classes": list(self.classes),
            "shards": [asdict(shard) for shard in self.shards],
        }
        content = json.loads(json.dumps(content))  # tuples as lists
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return (json.dumps(content | {"sha256": digest}, indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check it.

        Raises:
            DataError: it is missing, damaged, of another version, or something else.
        """
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
            content = json.loads(raw)
        except FileNotFoundError as error:
            what = f"has no {MANIFEST}" if folder.is_dir() else "does not exist"
            raise DataError(f"the folder of token shards {folder} {what}; `vistok tokenize` makes one") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise DataError(f"{path} is no manifest of token shards")
        if content.get("format") != FORMAT:
            raise DataError(
                f"{path} has the format {content.get('format')!r}, and this vistok reads {FORMAT}; "
                "if it was written by a newer vistok, update"
            )
        try:
            shards = tuple(ShardRecord.from_dict(shard) for shard in content["shards"])
            manifest = cls(content["recipe"], tuple(content["classes"]), shards)
            whole = manifest._encode() == raw and _is_recipe(manifest.recipe)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error!r}") from error
        if not whole:
            raise DataError(f"{path} is damaged, or was changed: its SHA-256 does not match")
        return manifest


@dataclass(frozen=True)
class ShardFacts:
    """Of the pictures of a shard.

    Attributes:
        index: int64 [n], in their source.
        label: int64 [n], -1 for none.
        text, ends: captions, see the head of this file.
    """

    index: np.ndarray
    label: np.ndarray
    text: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, index: Sequence[int], label: Sequence[int], captions: Sequence[str]) -> ShardFacts:
        """Of lists with one entry a picture."""
        texts = [caption.encode("utf-8", "surrogatepass") for caption in captions]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(np.array(index, np.int64), np.array(label, np.int64), np.frombuffer(b"".join(texts), np.uint8), ends)

    def caption(self, place: int) -> str:
        """Of the picture at a place of the shard."""
        start = int(self.ends[place - 1]) if place else 0
        return self.text[start : int(self.ends[place])].tobytes().decode("utf-8", "surrogatepass")

    def write(self, path: Path) -> None:
        """As ``.npz``, whole or not at all."""
        with whole_file(path) as file:
            np.savez(file, **{name: getattr(self, name) for name in _FACTS})

    @classmethod
    def read(cls, path: Path) -> ShardFacts:
        """Read and check.

        Raises:
            DataError: missing, damaged, or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _FACTS}
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"the facts of a token shard {path} cannot be read: {error}") from error
        facts = cls(**arrays)
        rows = [facts.index, facts.label, facts.ends]
        good = all(array.dtype == np.int64 and array.shape == facts.index.shape for array in rows)
        if not good or facts.index.ndim != 1 or facts.text.dtype != np.uint8 or facts.text.ndim != 1:
            raise DataError(f"{path} does not hold the facts of a token shard")
        if len(facts.ends) and (np.diff(facts.ends, prepend=0).min() < 0 or facts.ends[-1] != len(facts.text)):
            raise DataError(f"{path}: the captions of this token shard contradict their ends")
        return facts


def _is_recipe(recipe: Mapping[str, Any]) -> bool:
    """Whether it has what reading needs."""
    counts = (recipe["num_views"], recipe["num_tokens"])
    names = [recipe["tokenizer"][name] for name in ("name", "family", "weight_hash")]
    return all(type(count) is int and count >= 1 for count in counts) and all(isinstance(name, str) for name in names)


def tokens_path(folder: Path, number: int) -> Path:
    """Of a shard's tokens."""
    return folder / f"shard-{number:05d}.vtk"


def facts_path(folder: Path, number: int) -> Path:
    """Of a shard's labels and captions."""
    return folder / f"shard-{number:05d}.npz"


def record_path(folder: Path, number: int) -> Path:
    """Of what the manifest will say of a shard."""
    return folder / f"shard-{number:05d}.json"
