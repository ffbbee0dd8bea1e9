"""Generated pictures with the texts that they were made of, and references that they are compared with."""

from __future__ import annotations

import csv
import dataclasses
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vistok.data.sources import BaseSource, ImageSource, open_source
from vistok.errors import DataError
from vistok.files import file_sha256
from vistok.generate.sample_set import IMAGE_FOLDER, INDEX_FILE, NPZ_FILE, SETTINGS_FILE, read_prompts
from vistok.metrics.frechet import FeatureStats
from vistok.metrics.reference import read_made


class Samples(BaseSource):
    """Pictures, with captions of their own.

    Args:
        source: the pictures.
        captions: one a picture, "" for none; None takes the source's.
        settings: how they were made, for results.
    Raises:
        DataError: another number of captions than of pictures.
    """

    def __init__(
        self, source: ImageSource, *, captions: Sequence[str] | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        super().__init__(source.spec, source.classes)
        if captions is not None and len(captions) != len(source):
            raise DataError(f"{source.spec} has {len(source)} pictures, and {len(captions)} captions came")
        self.source, self.captions, self.settings = source, captions, settings or {}

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        """One picture."""
        return self.source.image(index)

    def label(self, index: int) -> int:
        """Its class, -1 for none."""
        return self.source.label(index)

    def caption(self, index: int) -> str:
        """The text that it was made of, "" for none."""
        return self.source.caption(index) if self.captions is None else self.captions[index]

    def name(self, index: int) -> str:
        """File, or file and row."""
        return self.source.name(index)

    def listing_hash(self) -> str:
        """The source's."""
        return self.source.listing_hash()

    def content_hash(self) -> str:
        """The source's."""
        return self.source.content_hash()


def open_samples(where: str | Path, *, captions: str | Path | None = None) -> Samples:
    """Samples: a folder that ``vistok generate`` wrote, an ``.npz``, any folder of pictures, or a data source.

    A folder of ``vistok generate`` says itself which texts its pictures are of, and how they were made; so do pictures with a
    ``.txt`` beside them.

    Args:
        where: the place.
        captions: a file with a text a line, which the pictures have in turn, as ``vistok generate --prompts`` takes them.
    Raises:
        DataError: nothing there, or a set that is not complete.
    """
    path, where = Path(where), str(where)
    written: dict[str, Any] = {}
    if path.is_dir():
        found = [part for part in (path / NPZ_FILE, path / IMAGE_FOLDER) if part.exists()]
        if found:
            written = _read_settings(path)
        where = f"npz:{found[0]}" if found and found[0].is_file() else f"folder:{found[0] if found else path}"
    elif path.is_file():
        where = f"npz:{path}"
    source = open_source(where, split="all")
    if written.get("num", len(source)) != len(source):
        raise DataError(
            f"{path} is to hold {written['num']} samples and holds {len(source)}: let `vistok generate` finish, "
            f"or name the pictures alone ({where})"
        )
    texts: Sequence[str] | None = None
    if captions is not None:
        prompts = read_prompts(captions)
        texts = [prompts[index % len(prompts)] for index in range(len(source))]
    elif written and (path / INDEX_FILE).is_file():
        texts = _read_captions(path / INDEX_FILE)
    return Samples(source, captions=texts, settings=written)


def _read_settings(folder: Path) -> dict[str, Any]:
    """How a set was made; {} where nothing says it."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read how the samples were made, {path}: {error}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} does not say how samples were made: it holds a {type(settings).__name__}")
    return settings


def _read_captions(path: Path) -> list[str]:
    """Texts of an index; "" for classes, and where there is no condition."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row["condition"] if row["label"] == "-1" else "" for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise DataError(f"cannot read the index of samples {path}: {error!r}") from error


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        images: pictures; of an evaluator's file, those that precision and recall are measured with.
        stats, spatial: statistics that come instead of pictures.
        described: what a result says about it.
    """

    images: ImageSource | None = None
    stats: FeatureStats | None = None
    spatial: FeatureStats | None = None
    described: dict[str, Any] = dataclasses.field(default_factory=dict)


def as_reference(reference: ImageSource | FeatureStats | Reference) -> Reference:
    """Pictures or statistics as a reference."""
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, FeatureStats):
        return Reference(stats=reference, described={"spec": "statistics", "size": reference.n})
    described = {"spec": reference.spec, "size": len(reference), "listing_hash": reference.listing_hash()}
    return Reference(images=reference, described=described)


def open_reference(spec: str, split: str | None = None) -> ImageSource | Reference:
    """A reference: a data source, or an ``.npz`` of pytorch-fid, clean-fid, ADM or ``vistok eval reference``.

    Such a file has statistics (``mu``, ``sigma``), and ADM's also those of sFID (``mu_s``, ``sigma_s``) and images (``arr_0``).

    Args:
        spec: the source, or the file.
        split: of a source; None takes what is held out, or else all.
    Raises:
        DataError: neither; or a file that is damaged or holds something else.
    """
    from vistok.metrics.command import open_evaluated

    path = Path(spec)
    if not spec.endswith(".npz") or ":" in spec:
        return open_evaluated(spec, split)[0]
    if not path.is_file():
        raise DataError(f"there is no file {spec} of statistics or images")
    names = _names_in(path)
    images = open_source(f"npz:{path}", split="all") if "arr_0" in names else None
    described: dict[str, Any] = {"spec": spec, "file_hash": file_sha256(path)[:16]}
    if made := read_made(path):
        described["made"] = made
    if "mu" not in names and images is not None:
        return Reference(images=images, described=described | {"size": len(images)})
    stats = FeatureStats.load(path)
    spatial = FeatureStats.load(path, spatial=True) if "mu_s" in names else None
    return Reference(images, stats, spatial, described | {"size": stats.n})


def _names_in(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from error
