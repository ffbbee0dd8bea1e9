"""Tokens as bytes: ids as big-endian numbers of ceil(log2 K) bits, latents as little-endian floats."""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FLOATS = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
_SHORT, _LONG = np.dtype(">u2"), np.dtype(">u8")
_WORKING_BITS = 1 << 24  # bits that are unfolded to a byte each at a time


@dataclass(frozen=True)
class Check:
    """A running check of 24 bits: a CRC-16, which finds every flip of one or two bits in 4 kB and every odd number
    of flips, and eight bits of a CRC-32, so that of other damage one in 2^24 goes unnoticed.

    Attributes:
        crc16, crc32: of all bytes so far.
    """

    crc16: int
    crc32: int

    @classmethod
    def start(cls, seed: int) -> Check:
        """From 32 bits that are checked, too."""
        return cls(seed & 0xFFFF, seed & 0xFFFFFFFF)

    def after(self, data: bytes) -> Check:
        """With more bytes."""
        return Check(binascii.crc_hqx(data, self.crc16), zlib.crc32(data, self.crc32))

    @property
    def value(self) -> int:
        """The 24 bits."""
        return self.crc16 << 8 | self.crc32 & 0xFF


def token_bits(kind: str, vocab_size: int | None, channels: int) -> int:
    """Bits that a token takes: ceil(log2 K), exactly, or its floats.

    Args:
        kind: ``ids``, ``fp32`` or ``fp16``.
        vocab_size: K, of ids.
        channels: C, of latents.
    """
    return (vocab_size - 1).bit_length() if kind == "ids" else channels * FLOATS[kind].itemsize * 8


def pack(ids: np.ndarray, lengths: Sequence[int], bits: int) -> list[bytes]:
    """Rows of int64 [B, L] as bytes; a row ends in zero bits that fill it up to whole bytes.

    Args:
        ids: 0 past a row's length.
        lengths: of the rows.
        bits: of a number, 0..62.
    """
    kind, columns, rows = _SHORT if bits <= 16 else _LONG, ids.shape[1], []
    for chunk in _chunks(len(ids), columns * bits):
        part = ids[chunk].astype(kind)
        whole = np.unpackbits(part.reshape(-1).view(np.uint8)).reshape(*part.shape, kind.itemsize * 8)
        unfolded = whole[:, :, kind.itemsize * 8 - bits :]  # [b, L, bits]
        packed = np.packbits(unfolded.reshape(len(unfolded), columns * bits), axis=1)
        rows += [row[: (length * bits + 7) // 8].tobytes() for row, length in zip(packed, lengths[chunk], strict=True)]
    return rows


def unpack(rows: Sequence[bytes], lengths: Sequence[int], bits: int) -> np.ndarray:
    """The inverse of ``pack``: int64 [B, longest length]; past a row's length, what its last bits say."""
    kind, columns = _SHORT if bits <= 16 else _LONG, max(lengths, default=0)
    ids, width = np.zeros((len(rows), columns), dtype=np.int64), (columns * bits + 7) // 8
    for chunk in _chunks(len(rows) if width else 0, columns * bits):
        packed = np.frombuffer(b"".join(row.ljust(width, b"\0") for row in rows[chunk]), dtype=np.uint8)
        unfolded = np.unpackbits(packed.reshape(-1, width), axis=1, count=columns * bits)
        whole = np.zeros((len(unfolded), columns, kind.itemsize * 8), dtype=np.uint8)
        whole[:, :, kind.itemsize * 8 - bits :] = unfolded.reshape(-1, columns, bits)
        ids[chunk] = np.packbits(whole).view(kind).reshape(-1, columns)
    return ids


def _chunks(num_rows: int, bits_per_row: int) -> Iterator[slice]:
    """Slices of rows, few enough at a time that a byte for every bit takes little memory."""
    step = max(1, _WORKING_BITS // max(1, bits_per_row))
    return (slice(start, start + step) for start in range(0, num_rows, step))
