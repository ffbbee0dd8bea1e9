"""How one image is stored in a ``.vtk`` file, so that any beginning of its bytes gives its first tokens.

An image is a record::

    length + 1 (varint) | block | check 3 bytes | block | check 3 bytes | ...

The blocks hold the tokens up to the 8th, the 16th, the 32nd, ... and the last one: early tokens
matter most, and long images pay little. A check is of all bytes of the record before it (without the
earlier checks), started from the header's CRC-32: a CRC-16 (CCITT) and the last eight bits of a CRC-32. It finds
every flip of one or two bits in 4 kB and every odd number of flips; of other damage, one in 2^24 goes unnoticed.

With entropy coding a record is ``length + 1 (varint) | bytes (varint) | bytes of the range coder``,
with the checks, of the length and of the ids as big-endian u64, coded among the tokens.

A valid prefix is the tokens of all leading blocks that are there and match their check.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vistok.entropy import EntropyCoder, coder_from_header
from vistok.errors import TokenFileError, VistokError
from vistok.token_packing import FLOATS, Check, pack, token_bits, unpack
from vistok.tokens import Tokens, checked_codebook, codebook_product

NAMES = ("family", "model", "weight_hash")
FIRST_BLOCK = 8  # tokens; a multiple of 8, so that blocks of any number of bits begin with a byte
END_OF_RECORDS = b"\0"
_CHECK_BYTES = 3
_MAX_LENGTH = 1 << 40
_MAX_CODED_LENGTH = 1 << 20
_MAX_VARINT_BYTES = 10
# A token of a one-word codebook takes no bits, so a few bytes could ask for any amount of memory.
_FREE_TOKENS = 1 << 22


@dataclass(frozen=True)
class TokenLayout:
    """What all images of a file have in common.

    Attributes:
        kind: ``ids``, ``fp32`` or ``fp16``.
        codebook_size: of ids.
        channels: C of latents, 0 for ids.
        family, model, weight_hash: of the tokenizer.
        prior: what ids are entropy-coded with; None if they are only packed.
        seed: what checks start from.
    """

    kind: str
    codebook_size: int | tuple[int, ...] | None
    channels: int = 0
    family: str = ""
    model: str = ""
    weight_hash: str = ""
    prior: EntropyCoder | None = None
    seed: int = 0

    @classmethod
    def of(cls, tokens: Tokens, prior: EntropyCoder | None = None) -> TokenLayout:
        """The layout that a file of these tokens has.

        Raises:
            VistokError: they cannot be stored: float64 latents, an unknown codebook, or not that of the prior.
        """
        if tokens.is_continuous and tokens.latents.dtype == torch.float64:
            raise VistokError("a token file holds fp16 or fp32 latents, got float64; convert them first")
        size = None if tokens.is_continuous else tokens.codebook_size
        if not tokens.is_continuous:
            _ = tokens.vocab_size  # an error where it is unknown
        if prior is not None:
            levels = size if isinstance(size, tuple) else (size,)
            if prior.levels != levels:
                came = "continuous latents" if size is None else f"the codebook {size}"
                raise VistokError(f"this prior is for the levels {prior.levels}, got {came}")
        names = {name: getattr(tokens, name) for name in NAMES}
        return cls(tokens.kind, size, tokens.channels, **names, prior=prior)

    # The header.

    def header(self, *, embed: bool = True) -> dict[str, Any]:
        """What the file's header says.

        Args:
            embed: put the prior in, where that can be; else only its hash.
        """
        out = {"kind": self.kind, "codebook_size": self.codebook_size, "channels": self.channels}
        out |= {name: getattr(self, name) for name in NAMES}
        if self.prior is not None:
            out["entropy"] = self.prior.describe(embed=embed)
        return out

    @classmethod
    def from_header(cls, encoded: bytes, seed: int, prior: EntropyCoder | None) -> TokenLayout:
        """The layout that an undamaged, but untrusted header describes."""
        header = json.loads(encoded)
        kind, channels = header["kind"], header["channels"]
        codebook = checked_codebook(header["codebook_size"], continuous=kind != "ids")
        names = {name: header[name] for name in NAMES}
        whole = type(channels) is int and 0 <= channels < 1 << 32
        if not whole or kind not in ("ids", *FLOATS) or (kind == "ids" and codebook is None):
            raise TokenFileError("the header of this token file contradicts itself")
        if not all(isinstance(name, str) for name in names.values()):
            raise TokenFileError("the names in the header of this token file are no text")
        found = None
        if header.get("entropy") is not None:
            if kind != "ids":
                raise TokenFileError("the header of this token file gives a prior for latents")
            levels = codebook if isinstance(codebook, tuple) else (codebook,)
            found = coder_from_header(header["entropy"], levels, prior)
        return cls(kind, codebook, channels, **names, prior=found, seed=seed)

    @property
    def bits_per_token(self) -> int:
        """Of a token that is packed."""
        size = None if self.codebook_size is None else codebook_product(self.codebook_size)
        return token_bits(self.kind, size, self.channels)

    def with_seed(self, seed: int) -> TokenLayout:
        """The same layout with other checks."""
        return replace(self, seed=seed)

    # Records.

    def encode(self, tokens: Tokens) -> list[bytes]:
        """The record of each row."""
        lengths = tokens.lengths.tolist()
        if self.prior is not None:
            ids = tokens.ids.cpu().numpy()
            return [self._encode_coded(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        if self.kind == "ids":
            rows = pack(tokens.ids.cpu().numpy(), lengths, self.bits_per_token)
        else:
            values = tokens.latents.detach().float().cpu().numpy().astype(FLOATS[self.kind])
            rows = [values[row, :length].tobytes() for row, length in enumerate(lengths)]
        return [self._with_checks(row, length) for row, length in zip(rows, lengths, strict=True)]

    def record_bytes(self, lengths: Sequence[int]) -> list[int]:
        """Bytes of packed records of these lengths, without entropy coding."""
        bits = self.bits_per_token
        return [
            len(_varint(length + 1)) + (length * bits + 7) // 8 + _CHECK_BYTES * len(block_ends(length))
            for length in lengths
        ]

    def decode(self, records: Sequence[bytes]) -> Tokens:
        """Tokens of whole records.

        Raises:
            TokenFileError: one is damaged, or has too few or too many bytes.
        """
        values: list[np.ndarray] = []
        rows: list[bytes] = []
        lengths: list[int] = []
        for number, record in enumerate(records):
            if self.prior is None:
                length, raw, kept, used, _ = self._parse_packed(record)
                rows.append(raw)
            else:
                length, ids, used, _ = self._parse(record)
                kept = len(ids)
                values.append(ids)
            if kept != length or used != len(record):
                raise TokenFileError(f"image {number} is damaged: {kept} of {length} tokens match their checks")
            lengths.append(length)
        return self.decode_plain(rows, lengths) if self.prior is None else self._to_tokens(values)

    def decode_plain(self, rows: Sequence[bytes], lengths: Sequence[int]) -> Tokens:
        """Tokens of rows that are packed without checks, as files of version 1 hold them."""
        if self.kind == "ids":  # all at once
            ids = torch.from_numpy(unpack(rows, lengths, self.bits_per_token))
            names = {name: getattr(self, name) for name in NAMES}
            return Tokens(ids, lengths=lengths, codebook_size=self.codebook_size, **names)
        return self._to_tokens([self._values(row, length)[0] for row, length in zip(rows, lengths, strict=True)])

    def decode_prefix(self, data: bytes | bytearray | memoryview, *, damaged: str = "error") -> Tokens:
        """One image, as far as its bytes go: the tokens of all leading blocks that are there and whole.

        Args:
            data: the first bytes of a record, or all of it; what follows the record is not read.
            damaged: what a block gets that is there but does not match its check: ``error``, or ``prefix`` for
                the tokens before it.
        Returns:
            one row; of length 0 if not even the first block is there.
        Raises:
            TokenFileError: damaged, with ``damaged="error"``.
        """
        if damaged not in ("error", "prefix"):
            raise VistokError(f"damaged is 'error' or 'prefix', got {damaged!r}")
        _, values, _, is_damaged = self._parse(bytes(data))
        if is_damaged and damaged == "error":
            raise TokenFileError(
                f"these bytes are damaged after {len(values)} tokens; damaged='prefix' gives the tokens before that"
            )
        return self._to_tokens([values])

    def scan(self, data: bytes) -> Iterator[Tokens]:
        """The images of records that follow each other, up to the first that is cut or damaged, of which the
        valid prefix comes last (unless it is empty)."""
        place = 0
        while place < len(data) and data[place : place + 1] != END_OF_RECORDS:
            length, values, used, _ = self._parse(data[place : place + self._most_bytes(data, place)])
            whole = used > 0 and len(values) == length
            if whole or len(values):
                yield self._to_tokens([values])
            if not whole:
                return
            place += used

    def _most_bytes(self, data: bytes, place: int) -> int:
        """How many bytes from ``place`` on are enough for one record, so that not all of them are copied for each."""
        length, used = _read_varint(data[place : place + _MAX_VARINT_BYTES])
        if not used:
            return len(data)
        if self.prior is not None:
            size, more = _read_varint(data[place + used : place + used + _MAX_VARINT_BYTES])
            return used + more + size if more else len(data)
        return used + (length * self.bits_per_token + 7) // 8 + _CHECK_BYTES * len(block_ends(min(length, _MAX_LENGTH)))

    def _with_checks(self, row: bytes, length: int) -> bytes:
        start = _varint(length + 1)
        check = Check.start(self.seed).after(start)
        parts, place = [start], 0
        for end in block_ends(length):
            last = (end * self.bits_per_token + 7) // 8
            block = row[place:last]
            check = check.after(block)
            parts += [block, check.value.to_bytes(_CHECK_BYTES, "big")]
            place = last
        return b"".join(parts)

    def _encode_coded(self, ids: np.ndarray) -> bytes:
        if len(ids) > _MAX_CODED_LENGTH:
            raise VistokError(f"entropy coding takes at most {_MAX_CODED_LENGTH} tokens an image, got {len(ids)}")
        start = _varint(len(ids) + 1)
        check = Check.start(self.seed).after(start)
        coded = self.prior.encode(ids, block_ends(len(ids)), check)
        return start + _varint(len(coded)) + coded

    def _parse(self, data: bytes) -> tuple[int, np.ndarray, int, bool]:
        """A record or its beginning.

        Returns:
            the announced length (-1 if not even that is there); the values of the valid prefix; the bytes of the
            record if it is whole, else 0; and whether it is damaged.
        """
        if self.prior is not None:
            return self._parse_coded(data)
        length, raw, kept, used, is_damaged = self._parse_packed(data)
        values, valid = self._values(raw, kept)
        return length, values, used if valid else 0, is_damaged or not valid

    def _parse_packed(self, data: bytes) -> tuple[int, bytes, int, int, bool]:
        """As ``_parse``, but the valid prefix still packed, and its length after it."""
        length, used, is_damaged = _read_length(data)
        bits = self.bits_per_token
        if not used or is_damaged or length >= _MAX_LENGTH or (bits == 0 and length > _FREE_TOKENS):
            return length, b"", 0, 0, is_damaged or used > 0
        check = Check.start(self.seed).after(data[:used])
        blocks, place, kept = [], used, 0
        ends = block_ends(length)
        for end in ends:
            size = (end * bits + 7) // 8 - (kept * bits + 7) // 8
            block = data[place : place + size]
            stored = data[place + size : place + size + _CHECK_BYTES]
            if len(block) < size or len(stored) < _CHECK_BYTES:
                break
            check = check.after(block)
            if stored != check.value.to_bytes(_CHECK_BYTES, "big"):
                is_damaged = True
                break
            blocks.append(block)
            place, kept = place + size + _CHECK_BYTES, end
        whole = len(blocks) == len(ends)
        return length, b"".join(blocks), kept, place if whole else 0, is_damaged

    def _parse_coded(self, data: bytes) -> tuple[int, np.ndarray, int, bool]:
        length, used, is_damaged = _read_length(data)
        if not used or is_damaged or length > _MAX_CODED_LENGTH:
            return length, self._no_values(), 0, is_damaged or used > 0
        size, more = _read_varint(data[used : used + _MAX_VARINT_BYTES])
        if not more:
            return length, self._no_values(), 0, len(data) >= used + _MAX_VARINT_BYTES
        begin = used + more
        coded = data[begin : begin + size]
        check = Check.start(self.seed).after(data[:used])
        complete = len(coded) == size
        ends = block_ends(length)
        ids, is_damaged = self.prior.decode(coded, ends, check, complete=complete)
        return length, ids, begin + size if complete and len(ids) == length and not is_damaged else 0, is_damaged

    def _no_values(self) -> np.ndarray:
        return self._values(b"", 0)[0]

    def _values(self, raw: bytes, length: int) -> tuple[np.ndarray, bool]:
        """Ids [L] or latents [L, C] out of their bytes, and whether all ids are in the codebook."""
        if self.kind == "ids":
            ids = unpack([raw], [length], self.bits_per_token)[0]
            valid = not length or int(ids.max()) < codebook_product(self.codebook_size)
            return (ids, True) if valid else (ids[:0], False)
        dtype = FLOATS[self.kind]
        return np.frombuffer(raw, dtype=dtype).reshape(length, self.channels).astype(dtype.newbyteorder("=")), True

    def _to_tokens(self, rows: list[np.ndarray]) -> Tokens:
        lengths = [len(row) for row in rows]
        names = {name: getattr(self, name) for name in NAMES}
        shape = (len(rows), max(lengths, default=0))
        if self.kind == "ids":
            ids = np.zeros(shape, dtype=np.int64)
            for row, values in enumerate(rows):
                ids[row, : len(values)] = values
            return Tokens(torch.from_numpy(ids), lengths=lengths, codebook_size=self.codebook_size, **names)
        latents = np.zeros((*shape, self.channels), dtype=FLOATS[self.kind].newbyteorder("="))
        for row, values in enumerate(rows):
            latents[row, : len(values)] = values
        return Tokens(latents=torch.from_numpy(latents), lengths=lengths, **names)


def block_ends(length: int) -> list[int]:
    """Where the blocks of an image of this many tokens end: 8, 16, 32, ..., length. One (empty) block at least."""
    ends, end = [], FIRST_BLOCK
    while end < length:
        ends.append(end)
        end *= 2
    return [*ends, length]


def header_seed(start: bytes, encoded: bytes) -> int:
    """The CRC-32 of a file's first fields and header."""
    return zlib.crc32(encoded, zlib.crc32(start))


def _read_length(data: bytes) -> tuple[int, int, bool]:
    """The length that a record announces, the bytes that say so (0 if they are not all there), and whether they are damaged."""
    announced, used = _read_varint(data)
    if not used:
        return -1, 0, len(data) >= _MAX_VARINT_BYTES
    return announced - 1, used, announced == 0


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes) -> tuple[int, int]:
    """The number and its bytes; (0, 0) if its end is not there."""
    value = 0
    for used, byte in enumerate(data[:_MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * used
        if byte < 0x80:
            return value, used + 1
    return 0, 0
