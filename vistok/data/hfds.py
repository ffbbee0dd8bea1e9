"""``hfds:NAME``: a data set of the Hugging Face hub, or a local folder of one, through timm's reader.

Columns and split can be named behind a question mark, as timm's defaults do not fit every set:
``hfds:uoft-cs/cifar100?image=img&label=fine_label``. The set is downloaded by ``datasets`` when it
is opened for the first time; nothing in it is run.
"""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from vistok.data.images import read_image
from vistok.data.sources import BaseSource, NoValSplitError, Split
from vistok.errors import DataError, nearest, require

_OPTIONS = ("split", "image", "label", "caption")
_VAL_NAMES = ("validation", "val", "valid")


def open_spec(rest: str, split: Split, spec: str) -> HfdsSource:
    """Open ``hfds:NAME?split=...&image=...&label=...&caption=...``."""
    name, _, query = rest.partition("?")
    if not name:
        raise DataError(f"{spec!r} names no data set; wanted is 'hfds:NAME', as in 'hfds:ylecun/mnist'")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in _OPTIONS:
            raise DataError(f"{spec!r}: unknown option {key!r}; {nearest(key, _OPTIONS)}")
    hf_split = options.pop("split", "")
    if hf_split and split == "val":
        raise NoValSplitError(
            f"{spec!r} names one split and so holds nothing out; name another for validation (data.val)"
        )
    hf_split = hf_split or _find_split(name, split, spec)
    return HfdsSource(name, spec=spec, hf_split=hf_split, **options)


class HfdsSource(BaseSource):
    """One split of a Hugging Face data set.

    Args:
        name: on the hub, or a local folder.
        spec: what it was opened from.
        hf_split: a split in the language of ``datasets``, as in ``train`` or ``test[:500]``.
        image: the column of pictures.
        label: the column of class numbers; "" for ``label`` if there is such a column, else for none.
        caption: the column of captions; "" for none.
    Raises:
        DataError: it cannot be loaded (unknown name, no network), or has no such column.
        MissingExtraError: datasets is not installed.
    """

    def __init__(
        self, name: str, *, spec: str, hf_split: str, image: str = "image", label: str = "", caption: str = ""
    ) -> None:
        require("datasets", extra="data", purpose="reading Hugging Face data sets")
        from timm.data.readers.reader_factory import create_reader

        try:
            self._reader = create_reader(f"hfds/{name}", split=hf_split, input_key=image, target_key=label or "label")
        except Exception as error:  # of datasets, huggingface_hub, the network or the file system
            raise DataError(f"cannot open {spec!r}: {type(error).__name__}: {error}") from error
        super().__init__(spec, tuple(self._reader.class_to_idx))
        self._rows, self._image_column, self._caption_column = self._reader.dataset, image, caption
        columns = [column for column in self._rows.column_names if column != image]
        table = self._rows.data
        # timm's cast makes up a column of nothing where the one that is asked for is missing.
        if len(table) and table.column(image).null_count == len(table):
            raise _no_column(spec, "image", image, columns)
        for option, column in (("label", label), ("caption", caption)):
            if column and column not in columns:
                raise _no_column(spec, option, column, columns)
        # A set without labels need not say so, but a label that is asked for must be there.
        label = label or ("label" if "label" in columns else "")
        self._id = f"{name}/{hf_split}"
        # Without the picture, so that a label or caption does not read it.
        self._labels = self._rows.select_columns([label]) if label else None
        self._captions = self._rows.select_columns([caption]) if caption else None
        self._label_column = label

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        try:
            # The reader without its label: sets without a label column are welcome too.
            cell: Any = self._rows[index][self._image_column]
        except Exception as error:
            raise DataError(f"cannot read {self.name(index)}: {error}") from error
        return read_image(_cell_file(cell, self.name(index)), name=self.name(index))

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index][self._label_column])

    def caption(self, index: int) -> str:
        return "" if self._captions is None else str(self._captions[index][self._caption_column] or "")

    def name(self, index: int) -> str:
        return f"{self._id}/{index:08d}"


def _find_split(name: str, split: Split, spec: str) -> str:
    datasets = require("datasets", extra="data", purpose="reading Hugging Face data sets")
    try:
        names = datasets.get_dataset_split_names(name)
    except Exception as error:
        raise DataError(f"cannot open {spec!r}: {type(error).__name__}: {error}") from error
    if split == "all":
        return "+".join(names)
    found = next((known for known in (_VAL_NAMES if split == "val" else ("train",)) if known in names), "")
    if not found:
        raise (NoValSplitError if split == "val" else DataError)(
            f"{spec!r} has no {split} split but {', '.join(names)}; name one, as in 'hfds:{name}?split={names[0]}'"
        )
    return found


def _no_column(spec: str, option: str, column: str, columns: list[str]) -> DataError:
    join = "&" if "?" in spec else "?"
    return DataError(
        f"{spec!r}: there is no column {column!r} for the {option}, but {', '.join(columns) or 'no other'}; "
        f"name one, as in '{spec}{join}{option}=COLUMN'"
    )


def _cell_file(cell: Any, name: str) -> io.BytesIO | str:
    """What a column of undecoded pictures holds: their bytes, or else a path."""
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise DataError(f"{name} holds no picture")
    return io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]
