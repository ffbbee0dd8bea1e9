"""Entropy coding of ids with static frequencies, by the range coder of ``constriction`` (``[codec]``).

How often every value of every digit of an id occurs, apart for the positions 0, 1, 2-3, 4-7, ... or
for all positions together. A product codebook (FSQ levels) has a digit a factor, first digit fastest, so its
tables stay small. ``EntropyCoder`` is what the coder asks of any prior; ``vistok.generate.prior`` has a learned one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import json
import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vistok.errors import TokenFileError, VistokError, require
from vistok.token_packing import Check

if TYPE_CHECKING:
    from vistok.tokens import Tokens

_MAX_VALUES = 1 << 20  # of a digit: the coder's probabilities have 24 bits
_MAX_FREQUENCY = (1 << 16) - 1
_HALF_CHECK = 1 << 12  # a check of 24 bits is coded as two numbers
_SPARE_BYTES = 64  # what the coder looks ahead
_ROUNDED_BYTES = 6  # at most so many last bytes of an image may turn out not to be needed


class EntropyCoder(ABC):
    """Ids of an image to bytes and back, under some prior.

    Attributes:
        levels: the number of values of each digit of an id.
    """

    levels: tuple[int, ...]

    @property
    @abstractmethod
    def hash(self) -> str:
        """16 hex digits that name this prior."""

    @abstractmethod
    def describe(self, *, embed: bool) -> dict[str, Any]:
        """What a file's header says of it; ``embed``: so that nothing else is needed to decode, where that can be."""

    @abstractmethod
    def begin(self, known: np.ndarray | None = None) -> Any:
        """What a pass over one image carries along from block to block.

        Args:
            known: ids [L] that the pass will meet, where they are known beforehand.
        """

    @abstractmethod
    def write_block(self, encoder: Any, ids: np.ndarray, start: int, end: int, state: Any) -> None:
        """Give ``ids[start:end]`` to a range encoder."""

    @abstractmethod
    def read_block(self, decoder: Any, start: int, end: int, state: Any) -> np.ndarray:
        """Take the ids of a block, int64 [end - start], from a range decoder; a ValueError if that cannot be."""

    def encode(self, ids: np.ndarray, ends: list[int], start: Check) -> bytes:
        """Ids [L] as the shortest bytes that ``decode`` reads back.

        Args:
            ids: int64 in [0, K).
            ends: where the blocks end; after each, 24 bits that check all ids so far are put in.
            start: what the checks start from.
        """
        encoder = _stream().queue.RangeEncoder()
        begin, state = 0, self.begin(ids)
        for end, check in zip(ends, _checks(ids, ends, start), strict=True):
            self.write_block(encoder, ids, begin, end, state)
            for half in divmod(check, _HALF_CHECK):
                encoder.encode(half, _check_model())
            begin = end
        whole = encoder.get_compressed().astype(">u4").tobytes()
        # The coder writes words of 32 bits; missing bytes are read as zeros, so some need not be there.
        for dropped in range(min(_ROUNDED_BYTES, len(whole)), 0, -1):
            kept = whole[:-dropped]
            above = int.from_bytes(kept, "big") + 1  # the next larger number may lie in the final interval, too
            for shorter in (kept, above.to_bytes(len(kept), "big") if above >> 8 * len(kept) == 0 else kept):
                decoded, is_damaged = self.decode(shorter, ends, start, complete=True, known=ids)
                if not is_damaged and np.array_equal(decoded, ids):
                    return shorter
        return whole

    def decode(
        self, data: bytes, ends: list[int], start: Check, *, complete: bool, known: np.ndarray | None = None
    ) -> tuple[np.ndarray, bool]:
        """The ids of all leading blocks that are there and whole, and whether the next one is damaged.

        Args:
            data: of one image, or its beginning.
            ends, start: as for ``encode``.
            complete: nothing is missing at the end.
            known: what the ids should be, where that is only to be confirmed.
        Returns:
            int64 ids; and True if a block that is there does not match its check.
        """
        # The decoded values grow with the number that the bytes are. Where missing bytes make no
        # difference whether they are all zeros or all ones, no other bytes would make one either.
        spare = b"\0" * ((ends[-1] if ends else 0) * 3 * (1 + len(self.levels)) + 3 * len(ends) + _SPARE_BYTES)
        decoders = [(_decoder(data + spare), self.begin(known))]
        if not complete:
            decoders.append((_decoder(data + b"\xff" * len(spare)), self.begin(known)))
        found = np.zeros(0, dtype=np.int64)
        begin = 0
        for end in ends:
            answers = [self._decode_block(decoder, begin, end, state) for decoder, state in decoders]
            if answers[0] is None and all(answer is None for answer in answers):
                return found, True
            if any(not _same(answers[0], answer) for answer in answers[1:]):
                return found, False
            ids, check = answers[0]
            longer = np.concatenate([found, ids])
            if int(ids.max(initial=0)) >= math.prod(self.levels) or _checks(longer, [end], start)[0] != check:
                return found, True
            found, begin = longer, end
        return found, False

    def _decode_block(self, decoder: Any, start: int, end: int, state: Any) -> tuple[np.ndarray, int] | None:
        """Ids and check of a block; None for bytes that no encoder makes."""
        try:
            ids = self.read_block(decoder, start, end, state)
            high, low = (int(decoder.decode(_check_model())) for _ in range(2))
        except (ValueError, AssertionError):  # constriction's answer to them
            return None
        return ids, high * _HALF_CHECK + low


class FrequencyTable(EntropyCoder):
    """How often the values of digits occur, as whole numbers.

    Args:
        levels: the number of values of each digit.
        frequencies: for every group of positions (one for all, or 0, 1, 2-3, 4-7, ...; positions past the last
            group belong to it) and every digit, 0 to 65,535 for each value; not all 0.
    Raises:
        VistokError: anything else.
    """

    def __init__(self, levels: tuple[int, ...], frequencies: list[list[np.ndarray]]) -> None:
        _check_levels(levels)
        for group in frequencies:
            shapes = [table.shape for table in group]
            if shapes != [(level,) for level in levels] or any(
                int(table.min()) < 0 or int(table.max()) > _MAX_FREQUENCY or not table.any() for table in group
            ):
                raise VistokError(
                    f"frequencies are numbers from 0 to {_MAX_FREQUENCY}, not all 0, for each of {levels}"
                )
        if not frequencies:
            raise VistokError("a frequency table has one group of positions or more, got none")
        self.levels = levels
        self.frequencies = [[table.astype(np.uint16) for table in group] for group in frequencies]

    @classmethod
    def fit(cls, batches: Iterable[Tokens], *, unseen: float = 0.5, by_position: bool | None = None) -> FrequencyTable:
        """Count the ids of tokens.

        Args:
            batches: discrete tokens of one codebook.
            unseen: added to every count. With 0, ids that do not occur are still coded, but in about 24 bits a digit.
            by_position: whether positions are counted apart; None takes what makes these tokens and the
                table together smaller.
        Raises:
            VistokError: no tokens, continuous ones, or different codebooks.
        """
        counts: list[list[np.ndarray]] = []
        levels: tuple[int, ...] = ()
        for tokens in batches:
            own = _levels(tokens)
            if levels and own != levels:
                raise VistokError(f"frequencies are counted over one codebook, got {levels} and {own}")
            levels = own
            _check_levels(levels)  # before a table of that size is made
            ids, mask = tokens.ids.cpu().numpy(), tokens.mask().cpu().numpy()
            for group, (start, end) in enumerate(_spans(0, ids.shape[1])):
                if group == len(counts):
                    counts.append([np.zeros(level, dtype=np.int64) for level in levels])
                kept = ids[:, start:end][mask[:, start:end]]
                for table, digits in zip(counts[group], _split(kept, levels), strict=True):
                    table += np.bincount(digits, minlength=len(table))
        if not levels:
            raise VistokError("frequencies are counted over tokens, got none")
        counts = counts or [[np.zeros(level, dtype=np.int64) for level in levels]]
        together = [[np.sum([group[digit] for group in counts], axis=0) for digit in range(len(levels))]]
        tables = {True: cls(levels, _scaled(counts, unseen)), False: cls(levels, _scaled(together, unseen))}
        if by_position is None:
            sizes = {apart: table._bits(counts) + 8 * len(table.to_text()) for apart, table in tables.items()}
            by_position = sizes[True] < sizes[False]
        return tables[by_position]

    @property
    def num_groups(self) -> int:
        """How many groups of positions are told apart."""
        return len(self.frequencies)

    @cached_property
    def hash(self) -> str:
        """16 hex digits that name this table."""
        return hashlib.sha256(f"{self.levels}".encode() + self._raw()).hexdigest()[:16]

    def to_text(self) -> str:
        """The frequencies as text, compressed; ``levels`` and ``num_groups`` are needed to read it."""
        return base64.b64encode(zlib.compress(self._raw(), 9)).decode()

    @classmethod
    def from_text(cls, text: str, levels: tuple[int, ...], num_groups: int) -> FrequencyTable:
        """The inverse of ``to_text``, of untrusted text.

        Raises:
            VistokError: it is no such text.
        """
        _check_levels(levels)
        size = 2 * sum(levels) * num_groups
        if not 1 <= num_groups <= 64:
            raise VistokError(f"a frequency table has 1 to 64 groups of positions, got {num_groups}")
        try:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(base64.b64decode(text, validate=True), size)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise VistokError(f"the frequency table is damaged: {error}") from error
        if len(raw) != size:
            raise VistokError(f"the frequency table is damaged: {len(raw)} bytes instead of {size}")
        flat = np.frombuffer(raw, dtype="<u2").reshape(num_groups, sum(levels))
        ends = np.cumsum(levels)[:-1]
        return cls(levels, [np.split(group, ends) for group in flat])

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        path = Path(path)
        content = {"kind": "static", "levels": self.levels, "groups": self.num_groups, "table": self.to_text()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> FrequencyTable:
        """Read what ``save`` wrote.

        Raises:
            VistokError: it cannot be read or is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["kind"] != "static":
                raise VistokError(f"this vistok knows the kind static, and the table is of the kind {content['kind']}")
            return cls.from_text(content["table"], tuple(map(int, content["levels"])), int(content["groups"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise VistokError(f"{path} is no frequency table: {error}") from error

    # Coding.

    def describe(self, *, embed: bool) -> dict[str, Any]:
        where = {"groups": self.num_groups, "table": self.to_text()} if embed else {"hash": self.hash}
        return {"kind": "static", **where}

    def begin(self, known: np.ndarray | None = None) -> None:
        """Positions know nothing of each other."""

    def write_block(self, encoder: Any, ids: np.ndarray, start: int, end: int, state: None) -> None:
        for first, last, models in self._parts(start, end):
            for digits, model in zip(_split(ids[first:last], self.levels), models, strict=True):
                if model is not None:
                    encoder.encode(digits.astype(np.int32), model)

    def read_block(self, decoder: Any, start: int, end: int, state: None) -> np.ndarray:
        parts = []
        for first, last, models in self._parts(start, end):
            count, ids, place = last - first, np.zeros(last - first, dtype=np.int64), 1
            for level, model in zip(self.levels, models, strict=True):
                if model is not None:
                    ids += place * decoder.decode(model, count).astype(np.int64)
                place *= level
            parts.append(ids)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, list[Any]]]:
        """The positions of a block by groups, with the coder's models of their digits."""
        if self.num_groups == 1:
            if end > start:
                yield start, end, self._models[0]
            return
        for first, last in _spans(start, end):
            yield first, last, self._models[min(first.bit_length(), self.num_groups - 1)]

    @cached_property
    def _models(self) -> list[list[Any]]:
        # A digit of one value takes no bits, and the coder has no model for it.
        return [[weights_model(table) if len(table) > 1 else None for table in group] for group in self.frequencies]

    def _raw(self) -> bytes:
        return b"".join(table.astype("<u2").tobytes() for group in self.frequencies for table in group)

    def _bits(self, counts: list[list[np.ndarray]]) -> float:
        """Bits that tokens with these counts take."""
        total = 0.0
        for number, group in enumerate(counts):
            for count, table in zip(group, self.frequencies[min(number, self.num_groups - 1)], strict=True):
                share = np.maximum(table / table.sum(), 2.0**-24)
                total -= float((count * np.log2(share)).sum())
        return total


def weights_model(weights: np.ndarray) -> Any:
    """The range coder's model of values 0, 1, ... that have these whole numbers as weights."""
    return _stream().model.Categorical(weights.astype(np.float64), perfect=False)


@cache
def _check_model() -> Any:
    return _stream().model.Uniform(_HALF_CHECK)


def _decoder(data: bytes) -> Any:
    words = np.frombuffer(data[: len(data) // 4 * 4], dtype=">u4").astype(np.uint32)
    return _stream().queue.RangeDecoder(words)


def _checks(ids: np.ndarray, ends: list[int], start: Check) -> list[int]:
    """The check of ``ids[:end]`` for each end."""
    raw, out, place = ids.astype(">u8").tobytes(), [], 0
    for end in ends:
        start, place = start.after(raw[place : 8 * end]), 8 * end
        out.append(start.value)
    return out


def _check_levels(levels: tuple[int, ...]) -> None:
    if not levels or max(levels) > _MAX_VALUES or min(levels) < 1:
        raise VistokError(
            f"entropy coding takes codebooks whose factors have at most {_MAX_VALUES} values, got {levels}"
        )


def _levels(tokens: Tokens) -> tuple[int, ...]:
    if tokens.is_continuous:
        raise VistokError("entropy coding with frequencies is for ids, got continuous latents")
    _ = tokens.vocab_size  # an error where it is unknown
    size = tokens.codebook_size
    return size if isinstance(size, tuple) else (size,)


def _spans(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of start..end that lie in one group each: 0, 1, 2-3, 4-7, ..."""
    while start < end:
        last = min(end, 1 << start.bit_length())
        yield start, last
        start = last


def _split(ids: np.ndarray, levels: tuple[int, ...]) -> list[np.ndarray]:
    """The digits of ids [n], the first one fastest."""
    digits = []
    for level in levels:
        digits.append(ids % level)
        ids = ids // level
    return digits


def _scaled(counts: list[list[np.ndarray]], unseen: float) -> list[list[np.ndarray]]:
    """Counts as whole numbers up to the largest frequency; what occurs keeps 1 or more."""
    out = []
    for group in counts:
        row = []
        for count in group:
            values = count + unseen if count.any() else np.ones(len(count))
            # Fractions count too; but a scale above 256 would only make the table harder to compress.
            scale = min(256.0 if unseen else 1.0, _MAX_FREQUENCY / values.max())
            row.append(np.where(values > 0, np.maximum(1, np.round(values * scale)), 0).astype(np.int64))
        out.append(row)
    return out


def _same(a: tuple[np.ndarray, int] | None, b: tuple[np.ndarray, int] | None) -> bool:
    return a is not None and b is not None and a[1] == b[1] and np.array_equal(a[0], b[0])


def has_codec() -> bool:
    """Whether the coder's package is installed."""
    return importlib.util.find_spec("constriction") is not None


def _stream() -> Any:
    return require("constriction", extra="codec", purpose="entropy coding of tokens").stream


def coder_from_header(entry: Any, levels: tuple[int, ...], given: EntropyCoder | None) -> EntropyCoder:
    """The prior that a token file's header holds or names.

    Args:
        entry: the header's ``entropy``.
        levels: of its codebook.
        given: a prior from elsewhere, for headers that only name theirs.
    Raises:
        TokenFileError: it names another one, or a kind that this vistok does not know.
    """
    if entry["kind"] == "static" and "table" in entry:
        return FrequencyTable.from_text(entry["table"], levels, entry["groups"])
    names = {"static": "the frequency table", "learned": "the learned prior"}
    if entry["kind"] not in names:
        raise TokenFileError(
            f"this token file is coded with a prior of the kind {entry['kind']!r}, which this vistok does not know; update"
        )
    if given is None or given.hash != entry["hash"]:
        came = "none was given" if given is None else f"the one given is {given.hash}"
        what = {
            "static": "name its file (frequencies=, or --frequencies)",
            "learned": "give that model (prior=, or --prior)",
        }
        called = f" ({entry['model']})" if entry.get("model") else ""
        raise TokenFileError(
            f"this token file was coded with {names[entry['kind']]} {entry['hash']}{called}, and {came}; {what[entry['kind']]}"
        )
    return given
