"""``npz:FILE``: a batch of samples as ADM's evaluator and ``vistok generate --format npz`` write it.

``arr_0`` is uint8 [N, H, W, 3], ``arr_1`` class numbers [N], if any. An uncompressed file is mapped, not read: fifty
thousand images of 256 pixels are 10 GB.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vistok.data.sources import BaseSource, NoValSplitError, Split
from vistok.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a member of a zip archive, before its name


def open_spec(rest: str, split: Split, spec: str) -> NpzSource:
    """Open ``npz:FILE``."""
    if not rest:
        raise DataError("'npz:' wants a file behind it, as in 'npz:samples.npz'")
    if split == "val":
        raise NoValSplitError(f"{spec} is one set and has no 'val' part")
    return NpzSource(rest)


class NpzSource(BaseSource):
    """Images of one ``.npz`` file.

    Args:
        path: the file.
    Raises:
        DataError: not such a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            with np.load(self.path, allow_pickle=False) as file:
                names = file.files
                self._labels = file["arr_1"] if "arr_1" in names else None
            if "arr_0" not in names:
                raise DataError(f"{path} has no arr_0, a batch of images; it holds {', '.join(names) or 'nothing'}")
            self._images = _mapped(self.path, "arr_0.npy")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error) as error:
            raise DataError(f"cannot read the samples {path}: {error}") from error
        shape = self._images.shape
        if self._images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
            raise DataError(f"{path}: arr_0 is to be uint8 [N, H, W, 3], got {self._images.dtype} {list(shape)}")
        if self._labels is not None and self._labels.shape != shape[:1]:
            raise DataError(f"{path}: {shape[0]} images and {list(self._labels.shape)} labels")
        classes = 0 if self._labels is None else int(self._labels.max()) + 1
        super().__init__(f"npz:{path}", tuple(str(number) for number in range(classes)))

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """One picture."""
        return Image.fromarray(np.asarray(self._images[index]))

    def label(self, index: int) -> int:
        """Its class, -1 for none."""
        return -1 if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """File and row."""
        return f"{self.path.name}[{index}]"

    def listing_hash(self) -> str:
        """Of the file's size and of a few of its images: it may be very large."""
        digest = hashlib.sha256(str(self._images.shape).encode())
        for index in range(0, len(self), max(1, len(self) // 64)):
            digest.update(np.ascontiguousarray(self._images[index]).tobytes())
        return digest.hexdigest()[:16]


def _mapped(path: Path, member: str) -> np.ndarray:
    """An array of an archive, mapped where it is not compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(fields[-2] + fields[-1], 1)  # its name and extra field, which may differ from the directory's
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject:
            raise ValueError(f"{member} is an array in Fortran order or of objects")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)
