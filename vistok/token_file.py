"""``.vtk``: a file of the tokens of many images, written as a stream, read anywhere.

Version 2, in little-endian order::

    magic 8 bytes | version u16 | header bytes u32 | header CRC32 u32 | header | record | record | ... | 0 | index | end

The header is JSON: ``kind`` (``ids``, ``fp32`` or ``fp16``), ``codebook_size``, ``channels``, the
names of the tokenizer, and ``entropy`` where the ids are entropy-coded: ``kind`` (``static``) with the frequencies, or
their hash. A record is one image, see ``vistok.token_layout``; no record begins with a 0 byte. The
index follows, as it is known when all is written: number of images u64, widths in bytes of a length and of a
size u8 u8, bytes of the names u64; the lengths; the sizes of the records; their CRC32 u32; the images' names as
JSON, compressed by zlib. The end is the index's bytes u64, its CRC32 (continued from the header's) u32, and ``VTKINDEX``.

So one image is read without the others and checked twice; a file that is cut still gives every
whole image and the valid prefix of the last (``recover``); an image that is cut gives its valid prefix.

Version 1, which is read too: the header also holds ``lengths``, ``offsets`` (from its end) and
``checksums`` (CRC32) of the rows, which are packed without checks of their own, and nothing follows the rows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from vistok.entropy import EntropyCoder
from vistok.errors import TokenFileError, VistokError
from vistok.token_layout import END_OF_RECORDS, TokenLayout, header_seed
from vistok.token_packing import FLOATS
from vistok.tokens import Tokens

MAGIC = b"VISTOKV\x1a"
VERSION = 2
_START = struct.Struct("<8sHI")  # magic, version, header bytes
_CHECKSUM = struct.Struct("<I")
_INDEX = struct.Struct("<QBBQ")  # images, width of a length, width of a size, bytes of the names
_END = struct.Struct("<QI8s")  # bytes of the index, its CRC32, magic
_END_MAGIC = b"VTKINDEX"
_MAX_HEADER_BYTES = 1 << 28
_CRC_BYTES = 4
# Rows are padded to the longest, so a small file could ask for any amount of memory. It may ask for
# this much, and this many times its own size.
_FREE_BYTES = 1 << 26
_MAX_EXPANSION = 1024
_BROKEN = (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError, struct.error)


class TokenWriter:
    """Writes a ``.vtk`` file image by image; it takes its name when it is closed, so a good file is never replaced by half of one.

    Use it as a context manager: an error inside leaves nothing behind.

    Args:
        path: the file to write, in a folder that exists.
        prior: entropy-code the ids with this: a ``FrequencyTable``, or a ``LearnedPrior``.
        embed: put a table of frequencies into the file (else only its hash, as of a model, and reading takes ``prior=``).
    """

    def __init__(self, path: str | Path, *, prior: EntropyCoder | None = None, embed: bool = True) -> None:
        self.path = Path(path)
        self._prior, self._embed = prior, embed
        self._layout: TokenLayout | None = None
        self._file: BinaryIO | None = None
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._lengths: list[int] = []
        self._sizes: list[int] = []
        self._checksums: list[int] = []
        self._names: list[str] = []
        self._seed = 0
        self._closed = False

    def write(self, tokens: Tokens, names: Sequence[str] = ()) -> list[int]:
        """Append images.

        Args:
            tokens: of the same tokenizer as those before.
            names: of the images, for all of a file or for none.
        Returns:
            bytes of each image's record.
        Raises:
            VistokError: tokens that cannot be stored, or not beside those before; as many names as images are wanted.
            TokenFileError: the file cannot be written.
        """
        if self._closed:
            raise VistokError(f"{self.path} is closed; nothing can be added to it")
        if names and len(names) != len(tokens):
            raise VistokError(f"as many names as images are wanted, got {len(names)} for {len(tokens)}")
        if self._lengths and len(tokens) and bool(names) != bool(self._names):
            raise VistokError("all images of a token file have names, or none has")
        layout = TokenLayout.of(tokens, self._prior)
        if self._layout is None:
            self._begin(layout)
        elif layout.with_seed(self._seed) != self._layout:
            raise VistokError(
                f"a token file holds the tokens of one tokenizer: it began with {_describe(self._layout)}, got "
                f"{_describe(layout)}"
            )
        records = self._layout.encode(tokens)
        self._put(*records)
        self._lengths += tokens.lengths.tolist()
        self._sizes += map(len, records)
        self._checksums += map(zlib.crc32, records)
        self._names += names
        return [len(record) for record in records]

    def close(self) -> None:
        """Write the index and give the file its name; a second time it does nothing."""
        if self._closed:
            return
        if self._layout is None:
            raise VistokError(f"nothing was written to {self.path}; write tokens before closing it")
        widths = [_width(values) for values in (self._lengths, self._sizes)]
        names = _pack_names(self._names) if self._names else b""
        columns = (
            np.array(values, dtype=f"<u{width}").tobytes()
            for values, width in zip((self._lengths, self._sizes, self._checksums), (*widths, _CRC_BYTES), strict=True)
        )
        index = b"".join([_INDEX.pack(len(self._lengths), *widths, len(names)), *columns, names])
        end = _END.pack(len(index), zlib.crc32(index, self._seed), _END_MAGIC)
        self._put(END_OF_RECORDS, index, end)
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        self._closed = True

    def abort(self) -> None:
        """Leave nothing of an unfinished file behind."""
        self._closed = True
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._temporary.unlink()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def _begin(self, layout: TokenLayout) -> None:
        encoded = json.dumps(layout.header(embed=self._embed), separators=(",", ":")).encode()
        if len(encoded) > _MAX_HEADER_BYTES:
            raise VistokError("the frequency table is too large for a token file; refer to it by embed=False")
        start = _START.pack(MAGIC, VERSION, len(encoded))
        self._seed = header_seed(start, encoded)
        with self._writing():
            self._file = self._temporary.open("xb")
        self._put(start, _CHECKSUM.pack(self._seed), encoded)
        self._layout = layout.with_seed(self._seed)

    def _put(self, *pieces: bytes) -> None:
        with self._writing():
            self._file.writelines(pieces)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TokenFileError(f"cannot write the token file {self.path}: {error}") from error


class TokenFile(Sequence[Tokens]):
    """A ``.vtk`` file that is open: images are read when they are asked for.

    ``file[3]`` is one image as a batch of one row, ``file[2:5]`` a batch, ``for tokens in file`` goes
    through all without holding them. Made by ``open`` or ``recover``.

    Attributes:
        layout: what all images have in common.
        lengths: int64 [B], tokens of each.
        sizes: int64 [B], bytes of each image's record.
        names: of the images; [] where they have none.
        version: of the format.
    """

    def __init__(self, stream: BinaryIO, where: str, prior: EntropyCoder | None) -> None:
        self._stream, self._where = stream, where
        self.names: list[str] = []
        with self._reading():
            self.num_bytes = stream.seek(0, os.SEEK_END)
            encoded = self._read_start()
            if self.version == 1:
                self._read_version_1(json.loads(encoded))
            else:
                self.layout = TokenLayout.from_header(encoded, self._seed, prior)

    @classmethod
    def open(cls, source: str | Path | bytes, *, prior: EntropyCoder | None = None) -> TokenFile:
        """Open a file, and read its header and index.

        Args:
            source: a path, or the bytes of a file.
            prior: for files that only name theirs.
        Raises:
            TokenFileError: it cannot be read, is no token file, is of a newer version, or its header or index is damaged.
        """
        file = cls._opened(source, prior)
        if file.version > 1:
            with file._reading():
                file._read_index()
        return file

    @classmethod
    def recover(cls, source: str | Path | bytes, *, prior: EntropyCoder | None = None) -> list[Tokens]:
        """The images of a file whose end is missing or damaged: all up to the first damage, whose valid prefix is the last.

        Raises:
            TokenFileError: not even the header is whole.
        """
        file = cls._opened(source, prior)
        if file.version == 1:
            raise TokenFileError(f"{file._where}: files of version 1 have no checks inside images; write it anew")
        with file, file._reading():
            file._stream.seek(file._begin)
            return list(file.layout.scan(file._stream.read()))

    @classmethod
    def read_layout(cls, source: str | Path | bytes, *, prior: EntropyCoder | None = None) -> TokenLayout:
        """What the beginning of a file says of its images: all that ``TokenLayout.decode_prefix`` needs to read them
        from a stream.

        Args:
            source: a path, or the first bytes of a file.
            prior: for files that only name theirs.
        Raises:
            TokenFileError: no token file, or not even its header is whole.
        """
        with cls._opened(source, prior) as file:
            return file.layout

    @classmethod
    def _opened(cls, source: str | Path | bytes, prior: EntropyCoder | None) -> TokenFile:
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls(io.BytesIO(source), "these bytes", prior)
        try:
            stream = Path(source).open("rb")
        except OSError as error:
            raise TokenFileError(f"cannot read the token file {source}: {error}") from error
        try:
            return cls(stream, str(source), prior)
        except BaseException:
            stream.close()
            raise

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Tokens:
        """Read images, always as a batch (one number gives one row).

        Raises:
            IndexError: there is no such image.
            TokenFileError: one that is asked for is damaged.
        """
        chosen = np.atleast_1d(np.arange(len(self))[list(rows) if isinstance(rows, tuple) else rows])
        with self._reading():
            self._check_expansion(self.lengths[chosen], self.sizes[chosen])
            return self._decode([(int(row), self._record(int(row))) for row in chosen])

    def __iter__(self) -> Iterator[Tokens]:
        return (self[row] for row in range(len(self)))

    def batches(self, size: int) -> Iterator[Tokens]:
        """All images in batches of ``size``, read one after the other."""
        if size < 1:
            raise VistokError(f"a batch has one image or more, got {size}")
        return (self[start : start + size] for start in range(0, len(self), size))

    def record(self, row: int) -> bytes:
        """The bytes of one image, for sending or cutting; ``layout.decode_prefix`` reads them."""
        with self._reading():
            return self._record(range(len(self))[row])

    def read_prefix(self, row: int, num_bytes: int) -> Tokens:
        """What the first ``num_bytes`` bytes of an image give: one row, perhaps of length 0.

        Raises:
            TokenFileError: they are damaged, or the file is of version 1.
        """
        if self.version == 1:
            raise TokenFileError(f"{self._where}: files of version 1 have no checks inside images; write it anew")
        row = range(len(self))[row]
        with self._reading():
            self._stream.seek(int(self._offsets[row]))
            return self.layout.decode_prefix(self._stream.read(max(0, min(num_bytes, int(self.sizes[row])))))

    def read_all(self) -> Tokens:
        """All images as one batch."""
        return self[:]

    @property
    def index_bytes(self) -> int:
        """Bytes of the file that are not images: header, index and end."""
        return self.num_bytes - int(self.sizes.sum())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TokenFileError(f"cannot read the token file {self._where}: {error}") from error
        except VistokError as error:
            raise TokenFileError(f"{self._where}: {error}") from error
        except _BROKEN as error:  # whole, but written wrongly
            raise TokenFileError(f"{self._where}: the header of this token file makes no sense ({error!r})") from error

    def _read_start(self) -> bytes:
        """The header, unharmed but not yet trusted."""
        self._stream.seek(0)
        start, stored = self._stream.read(_START.size), self._stream.read(_CHECKSUM.size)
        if len(stored) < _CHECKSUM.size or not start.startswith(MAGIC):
            raise TokenFileError("this is not a vistok token file (.vtk), or no more than the first bytes of one")
        _, self.version, size = _START.unpack(start)
        if self.version not in (1, VERSION):
            raise TokenFileError(
                f"this token file has the format version {self.version}, and this vistok reads versions 1 to {VERSION}; "
                "if it was written by a newer vistok, update"
            )
        self._begin = _START.size + _CHECKSUM.size + size
        if size > _MAX_HEADER_BYTES or self._begin > self.num_bytes:
            raise TokenFileError(
                f"this token file is truncated or damaged: a header of {size} bytes does not fit in it"
            )
        encoded = self._stream.read(size)
        self._seed = header_seed(start, encoded)
        if self._seed != _CHECKSUM.unpack(stored)[0]:
            raise TokenFileError("this token file is damaged: the checksum of its header does not match")
        return encoded

    def _read_index(self) -> None:
        least = self._begin + len(END_OF_RECORDS) + _INDEX.size + _END.size
        if self.num_bytes < least:
            raise TokenFileError(
                "this token file is truncated: its index is missing; TokenFile.recover reads what is there"
            )
        self._stream.seek(self.num_bytes - _END.size)
        size, checksum, magic = _END.unpack(self._stream.read(_END.size))
        if magic != _END_MAGIC or not _INDEX.size <= size <= self.num_bytes - least + _INDEX.size:
            raise TokenFileError(
                "this token file is truncated or damaged: it does not end with its index; TokenFile.recover reads what is there"
            )
        place = self.num_bytes - _END.size - size
        self._stream.seek(place - len(END_OF_RECORDS))
        stop, index = self._stream.read(len(END_OF_RECORDS)), self._stream.read(size)
        if zlib.crc32(index, self._seed) != checksum:
            raise TokenFileError(
                "this token file is damaged: the checksum of its index does not match; TokenFile.recover reads what is there"
            )
        count, *widths, names = _INDEX.unpack_from(index)
        widths.append(_CRC_BYTES)
        if any(width not in (1, 2, 4, 8) for width in widths) or size != _INDEX.size + count * sum(widths) + names:
            raise TokenFileError("the index of this token file contradicts itself")
        ends = list(accumulate((count * width for width in widths), initial=_INDEX.size))
        columns = [
            np.frombuffer(index, dtype=f"<u{width}", count=count, offset=start).astype(np.int64)
            for start, width in zip(ends[:-1], widths, strict=True)
        ]
        self._set_index(*columns)
        if stop != END_OF_RECORDS or int(self.sizes.sum()) != place - len(END_OF_RECORDS) - self._begin:
            raise TokenFileError("this token file is truncated or damaged: its images and its index do not agree")
        self.names = _unpack_names(index[ends[-1] :]) if names else []
        if names and (len(self.names) != count or not all(isinstance(name, str) for name in self.names)):
            raise TokenFileError("the index of this token file contradicts itself: names and images do not agree")

    def _read_version_1(self, header: dict[str, Any]) -> None:
        lengths, offsets, checksums = header["lengths"], header["offsets"], header["checksums"]
        if not all(type(value) is int and 0 <= value < 1 << 62 for value in (*lengths, *offsets, *checksums)):
            raise TokenFileError("the header of this token file gives something else than whole numbers")
        encoded = json.dumps({key: value for key, value in header.items() if key != "entropy"}).encode()
        self.layout = TokenLayout.from_header(encoded, 0, None)
        sizes = [(length * self.layout.bits_per_token + 7) // 8 for length in lengths]
        if offsets != list(accumulate(sizes, initial=0)) or len(checksums) != len(lengths):
            raise TokenFileError("the header of this token file contradicts itself: offsets and lengths do not agree")
        if offsets[-1] != self.num_bytes - self._begin:
            raise TokenFileError(
                f"this token file is truncated or damaged: {self.num_bytes - self._begin} of {offsets[-1]} bytes of tokens"
            )
        self._set_index(*(np.array(column, dtype=np.int64) for column in (lengths, sizes, checksums)))

    def _set_index(self, lengths: np.ndarray, sizes: np.ndarray, checksums: np.ndarray) -> None:
        if min(lengths.min(initial=0), sizes.min(initial=0)) < 0:
            raise TokenFileError("the index of this token file makes no sense: a negative number")
        self.lengths, self.sizes, self._checksums = lengths, sizes, checksums
        self._offsets = self._begin + np.cumsum(sizes) - sizes

    def _record(self, row: int) -> bytes:
        self._stream.seek(int(self._offsets[row]))
        record = self._stream.read(int(self.sizes[row]))
        if zlib.crc32(record) != self._checksums[row]:
            raise TokenFileError(f"this token file is damaged: the checksum of image {row} does not match")
        return record

    def _decode(self, records: list[tuple[int, bytes]]) -> Tokens:
        if self.version == 1:
            return self.layout.decode_plain(
                [record for _, record in records], [int(self.lengths[row]) for row, _ in records]
            )
        tokens = self.layout.decode([record for _, record in records])
        if tokens.lengths.tolist() != [int(self.lengths[row]) for row, _ in records]:
            raise TokenFileError("this token file is damaged: the lengths in its index are not those of its images")
        return tokens

    def _check_expansion(self, lengths: np.ndarray, sizes: np.ndarray) -> None:
        check_expansion(lengths.tolist(), self.layout.kind, self.layout.channels, int(sizes.sum()))


def check_expansion(lengths: Sequence[int], kind: str, channels: int, num_bytes: int) -> None:
    """Refuse tokens that take far more memory than bytes in a file."""
    each = 8 if kind == "ids" else max(1, channels) * FLOATS[kind].itemsize
    memory = len(lengths) * max(lengths, default=0) * each
    held = num_bytes + 16 * len(lengths)  # a row has its part of the index too
    if memory > _FREE_BYTES + _MAX_EXPANSION * held:
        raise VistokError(
            f"{len(lengths)} rows padded to {max(lengths)} tokens would take {memory / 1e9:.3g} GB for {held} bytes "
            "of tokens; a batch holds rows of similar lengths"
        )


def write_tokens(path: str | Path, batches: Iterable[Tokens], **options: Any) -> None:
    """Write batches of one tokenizer's tokens as one file; ``options`` are ``TokenWriter``'s."""
    with TokenWriter(path, **options) as writer:
        for tokens in batches:
            writer.write(tokens)


def recode(
    source: str | Path,
    path: str | Path,
    *,
    prior: EntropyCoder | None,
    embed: bool = True,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the images of a file anew, with other entropy coding or (None) without any.

    Args:
        source: the file to read; path: the one to write.
        prior, embed: as for ``TokenWriter``.
        batch_size: images at a time.
        progress: is told how many images each batch had.
    """
    with TokenFile.open(source) as file, TokenWriter(path, prior=prior, embed=embed) as writer:
        for start in range(0, len(file), batch_size):
            tokens = file[start : start + batch_size]
            writer.write(tokens, file.names[start : start + batch_size])
            progress(len(tokens))
        if not len(file):
            writer.write(file[:])


def _pack_names(names: list[str]) -> bytes:
    # File names need not be valid Unicode.
    return zlib.compress(json.dumps(names, ensure_ascii=False).encode("utf-8", "surrogatepass"), 9)


def _unpack_names(packed: bytes) -> Any:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, _MAX_HEADER_BYTES)
    except zlib.error as error:
        raise TokenFileError(f"the names in this token file cannot be read: {error}") from error
    if not unpacker.eof:
        raise TokenFileError("the names in this token file cannot be read: they are too long, or cut")
    return json.loads(text.decode("utf-8", "surrogatepass"))


def _width(values: Sequence[int]) -> int:
    """Bytes of the smallest unsigned type that holds all values."""
    return next(width for width in (1, 2, 4, 8) if max(values, default=0) < 1 << 8 * width)


def _describe(layout: TokenLayout) -> str:
    names = " ".join(filter(None, (layout.model or layout.family, layout.weight_hash)))
    size = layout.kind if layout.codebook_size is None else f"codebook {layout.codebook_size}"
    return f"{names or 'an unknown tokenizer'} ({size})"
