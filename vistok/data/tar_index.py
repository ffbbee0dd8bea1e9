"""Where the members of a tar file lie, without unpacking it.

Reads ustar, GNU and pax headers, as ``tarfile`` does (the oracle of its tests), but about
four times as fast: every process indexes all shards when it starts, and ImageNet has 2.5 million
members.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistok.errors import DataError

_BLOCK = 512
_FILES = b"\x0007"  # the kinds that are ordinary files
_ZEROS = bytes(_BLOCK)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, mapped into memory: nothing is read but what is looked at.

    Raises:
        DataError: unreadable or empty.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise DataError(f"the tar file {path} is empty") from error
    except OSError as error:
        raise DataError(f"cannot read the tar file {path}: {error}") from error
    with data:
        yield data


def tar_members(data: mmap.mmap | bytes, path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every ordinary file in an uncompressed tar.

    Args:
        data: the whole tar, as from ``mapped``.
        path: what errors call it.
    Raises:
        DataError: compressed, truncated, damaged, or no tar at all.
    """
    end = len(data)
    offset, long_name, size_in_pax = 0, "", -1
    while offset < end:
        header = data[offset : offset + _BLOCK]
        if header == _ZEROS:
            return
        _check_header(header, offset, path)
        kind, start = header[156:157], offset + _BLOCK
        # Links and folders may state a size, but no data follows them.
        size = 0 if kind in b"123456" else _number(header[124:136], path)
        if size_in_pax >= 0 and kind in _FILES:
            size = size_in_pax
        if size < 0:
            raise DataError(f"the tar file {path} is damaged: a size of {size} at {start}")
        offset = start + -(-size // _BLOCK) * _BLOCK
        if start + size > end:
            raise DataError(f"the tar file {path} is truncated: {start + size} bytes are announced, {end} are there")
        if kind == b"L":  # GNU: the name of the next member
            long_name = _text(data[start : start + size].rstrip(b"\0"))
        elif kind == b"x":  # pax: facts about the next member
            records = _pax_records(data[start : start + size], path)
            long_name, size_in_pax = (
                records.get("path", long_name),
                _number(records.get("size", "-1").encode(), path, 10),
            )
        elif kind != b"g":
            name = long_name or _short_name(header)
            if kind in _FILES and not name.endswith("/"):
                yield name, start, size
            long_name, size_in_pax = "", -1


def _check_header(header: bytes, offset: int, path: Path) -> None:
    if len(header) < _BLOCK:
        raise DataError(f"the tar file {path} is truncated in a header at {offset}")
    try:
        checksum = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        checksum = -1
    # The sum of all bytes, its own eight taken as spaces. The low half of Adler-32 is a sum of bytes
    # modulo 65521, and ten times as fast as sum().
    wanted = (zlib.adler32(header, 0) & 0xFFFF) - sum(header[148:156]) + 8 * ord(" ")
    if checksum < 0 or (checksum - wanted) % 65521:
        compressed = (
            header[:2] == b"\x1f\x8b" or header[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX") or header[:3] == b"BZh"
        )
        reason = (
            "compressed: unpack it to a plain .tar first" if compressed else f"damaged or no tar file (at {offset})"
        )
        raise DataError(f"the shard {path} is {reason}")


def _number(field: bytes, path: Path, base: int = 8) -> int:
    if field[:1] == b"\x80":  # GNU: big-endian, for 8 GB and more
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", base)
    except ValueError as error:
        raise DataError(f"the tar file {path} is damaged: {field!r} is no size") from error


def _short_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":  # GNU's own header ("ustar  ") keeps other things here
        prefix = header[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name)


def _pax_records(data: bytes, path: Path) -> dict[str, str]:
    records = {}
    while data:
        try:
            length = int(data.split(b" ", 1)[0])
            key, _, value = data[:length].split(b" ", 1)[1].partition(b"=")
        except (ValueError, IndexError) as error:
            raise DataError(f"the tar file {path} has a damaged pax header") from error
        if length <= 0:
            raise DataError(f"the tar file {path} has a damaged pax header")
        records[_text(key)] = _text(value.rstrip(b"\n"))
        data = data[length:].lstrip(b"\0")
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
