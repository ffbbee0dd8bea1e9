"""``Tokens``: what every tokenizer makes of images. Their files are ``vistok.token_file``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.token_packing import token_bits

_MAX_VOCAB_SIZE = 1 << 62
_NAMES = ("family", "model", "weight_hash")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch of images: ids or continuous latents, and how many each row keeps.

    Attributes:
        ids: int64 [B, L] in [0, K), or None for continuous tokens. Positions past a row's length hold 0.
        lengths: int64 [B], each 0..L; given as None it becomes L for every row.
        codebook_size: K, or the factors of which K is the product (FSQ levels, dual codebooks), or
            None where unknown or continuous.
        latents: float [B, L, C], 0 past a row's length; exactly one of ``ids`` and ``latents`` is given.
        family: of the tokenizer they came from, "" where unknown; so are ``model`` and ``weight_hash``.
    Raises:
        VistokError: wrong types or shapes, a length outside 0..L, an id outside [0, K).
    """

    ids: Tensor | None = None
    lengths: Tensor | Sequence[int] | None = field(default=None, kw_only=True)
    codebook_size: int | tuple[int, ...] | None = field(default=None, kw_only=True)
    latents: Tensor | None = field(default=None, kw_only=True)
    family: str = field(default="", kw_only=True)
    model: str = field(default="", kw_only=True)
    weight_hash: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        data = self._checked_data()
        self._set("codebook_size", checked_codebook(self.codebook_size, self.is_continuous))
        for name in _NAMES:
            if not isinstance(getattr(self, name), str):
                raise VistokError(f"{name} is a string, got {getattr(self, name)!r}")
        rows, columns = data.shape[:2]
        if self.lengths is None:
            self._set("lengths", torch.full((rows,), columns, dtype=torch.int64, device=data.device))
        else:
            lengths = _whole_numbers(self.lengths, "lengths", data.device)
            shortest, longest = _extremes(lengths)
            if lengths.shape != (rows,) or shortest < 0 or longest > columns:
                raise VistokError(
                    f"lengths are one number from 0 to {columns} for each of {rows} rows, "
                    f"got {list(lengths.shape)} from {shortest} to {longest}"
                )
            self._set("lengths", lengths)
            data = _cut(data, lengths) if rows and shortest < columns else data
        self._set(self._key, data)
        if not self.is_continuous:
            low, high = _extremes(data)
            if low < 0 or (self.codebook_size is not None and high >= self.vocab_size):
                raise VistokError(f"ids lie in [0, {self.codebook_size or 'codebook_size'}), got {low} to {high}")

    def _checked_data(self) -> Tensor:
        """The one of ids (as int64) and latents that is given, if its type and shape are right."""
        if (self.ids is None) == (self.latents is None):
            raise VistokError("Tokens take either ids or latents, and exactly one of them")
        data, wanted = self._data, "floats [B, L, C]" if self.is_continuous else "whole numbers [B, L]"
        if not isinstance(data, Tensor):
            raise VistokError(f"{self._key} are a tensor of {wanted}, got {type(data).__name__}")
        right_type = data.is_floating_point() if self.is_continuous else _is_whole(data)
        if not right_type or data.ndim != (3 if self.is_continuous else 2):
            raise VistokError(f"{self._key} are {wanted}, got {data.dtype} {list(data.shape)}")
        return data if self.is_continuous else data.long()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _derived(self, data: Tensor, lengths: Tensor, **names: str) -> Tokens:
        """Tokens made of parts of these: not checked again, for which the CPU would have to wait for a GPU."""
        tokens = object.__new__(Tokens)
        tokens.__dict__.update({**self.__dict__, **names, self._key: data, "lengths": lengths})
        return tokens

    @property
    def _key(self) -> str:
        return "ids" if self.latents is None else "latents"

    @property
    def _data(self) -> Tensor:
        return self.ids if self.latents is None else self.latents

    @property
    def kind(self) -> str:
        """How a file stores them: ``ids``, ``fp32`` or ``fp16``."""
        return "ids" if self.latents is None else "fp16" if self.latents.dtype == torch.float16 else "fp32"

    @property
    def channels(self) -> int:
        """C of latents, 0 for ids."""
        return 0 if self.latents is None else self.latents.shape[2]

    def __len__(self) -> int:
        return self._data.shape[0]

    @property
    def num_rows(self) -> int:
        """B, the number of images."""
        return self._data.shape[0]

    @property
    def num_tokens(self) -> int:
        """L, the number of columns; a row may keep fewer."""
        return self._data.shape[1]

    @property
    def is_continuous(self) -> bool:
        """Whether these are latents instead of ids."""
        return self.latents is not None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._data.device

    @property
    def vocab_size(self) -> int:
        """K, the number of different ids.

        Raises:
            VistokError: the codebook size is unknown, or the tokens are continuous.
        """
        if self.is_continuous:
            raise VistokError("continuous tokens have no codebook")
        if self.codebook_size is None:
            raise VistokError("the codebook size of these tokens is unknown; set it: tokens.replace(codebook_size=...)")
        return codebook_product(self.codebook_size)

    def mask(self) -> Tensor:
        """bool [B, L], True where a row has a token."""
        return _mask(self.lengths, self.num_tokens)

    def replace(self, **changes: Any) -> Tokens:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def truncate(self, length: int | Sequence[int] | Tensor) -> Tokens:
        """Keep at most ``length`` leading tokens of every row, and only the columns that the longest needs.

        Args:
            length: 0 or more: one number, or one for each row.
        Raises:
            VistokError: a negative or fractional length, or not one for each row.
        """
        wanted = _whole_numbers(length, "length", self.device)
        if wanted.ndim > 1 or (wanted.ndim == 1 and len(wanted) != len(self)):
            raise VistokError(
                f"truncate takes one length or one for each of {len(self)} rows, got {list(wanted.shape)}"
            )
        if (shortest := _extremes(wanted)[0]) < 0:
            raise VistokError(f"truncate keeps 0 tokens or more, got {shortest}")
        lengths = torch.minimum(self.lengths, wanted)
        return self._derived(_cut(self._data[:, : _extremes(lengths)[1]], lengths), lengths)

    def pad(self, num_tokens: int) -> Tokens:
        """More columns, up to ``num_tokens`` in all (an error if there are more already); the lengths stay."""
        missing = num_tokens - self.num_tokens
        if missing < 0:
            raise VistokError(f"cannot pad {self.num_tokens} columns to {num_tokens}; use truncate to have fewer")
        empty = self._data.new_zeros((len(self), missing, *self._data.shape[2:]))
        return self._derived(torch.cat([self._data, empty], dim=1), self.lengths)

    def split(self, size: int = 1) -> list[Tokens]:
        """Parts of ``size`` rows each (the last may have fewer); ``cat`` puts them together again."""
        if size < 1:
            raise VistokError(f"a part has one row or more, got {size}")
        if not len(self):
            return []
        parts = zip(self._data.split(size), self.lengths.split(size), strict=True)
        return [self._derived(data, lengths) for data, lengths in parts]

    @staticmethod
    def cat(parts: Iterable[Tokens]) -> Tokens:
        """All rows of ``parts``, padded to the longest.

        The weight hash is kept where all parts have the same.

        Raises:
            VistokError: no parts, or parts of different kind, codebook, family, model, channels or device.
        """
        parts = list(parts)
        if not parts:
            raise VistokError("cat takes at least one part, got none")
        for name in ("kind", "channels", "codebook_size", "family", "model", "device"):
            answers = {str(getattr(part, name)) for part in parts}
            if len(answers) > 1:
                raise VistokError(f"cannot join tokens of different {name}: {', '.join(sorted(answers))}")
        columns = max(part.num_tokens for part in parts)
        hashes = {part.weight_hash for part in parts}
        return parts[0]._derived(
            torch.cat([part.pad(columns)._data for part in parts]),
            torch.cat([part.lengths for part in parts]),
            weight_hash=hashes.pop() if len(hashes) == 1 else "",
        )

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Tokens:
        """The chosen rows, always as a batch (one number gives one row); the columns stay.

        Args:
            rows: as numpy indexes one axis: a number, a slice, a list or tensor of numbers, or a mask.
        Raises:
            IndexError: there is no such row.
        """
        rows = rows.cpu().numpy() if isinstance(rows, Tensor) else list(rows) if isinstance(rows, tuple) else rows
        chosen = np.arange(len(self))[rows]
        if chosen.ndim > 1:
            raise IndexError(f"rows are chosen along one axis, got an index of shape {list(chosen.shape)}")
        index = torch.from_numpy(np.array(chosen, ndmin=1)).to(self.device)
        return self._derived(self._data[index], self.lengths[index])

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        return self._derived(self._data.to(device), self.lengths.to(device))

    def bits(self) -> Tensor:
        """Bits of every image as a file stores them, without header: float64 [B].

        The length times ceil(log2 K) (an error if K is unknown), or times 16 C for fp16 latents and
        32 C for all others.
        """
        return self.lengths.double() * self._bits_per_token()

    def _bits_per_token(self) -> int:
        return token_bits(self.kind, None if self.is_continuous else self.vocab_size, self.channels)

    def __eq__(self, other: object) -> bool:
        """Same valid ids or latents, lengths and codebook; names, padding, device and float type do not matter."""
        if not isinstance(other, Tokens):
            return NotImplemented
        if (self._key, self.codebook_size, len(self)) != (other._key, other.codebook_size, len(other)):
            return False
        if not torch.equal(self.lengths.cpu(), other.lengths.cpu()):
            return False
        columns = _extremes(self.lengths)[1]
        a, b = (tokens._data[:, :columns].cpu() for tokens in (self, other))
        common = torch.promote_types(a.dtype, b.dtype)
        return torch.equal(a.to(common), b.to(common))

    __hash__ = None  # equal by value, and the values can change

    def __repr__(self) -> str:
        shortest, longest = _extremes(self.lengths)
        parts = [f"{self._key} {list(self._data.shape)}", f"lengths {shortest}..{longest}"]
        parts += [self.kind if self.is_continuous else f"codebook {self.codebook_size}", self.model or self.family]
        return f"Tokens({', '.join(filter(None, parts))})"

    def save(self, path: str | Path) -> None:
        """Write a ``.vtk`` file; an existing one is replaced only when the new one is complete.

        bf16 latents are stored as fp32, which holds them exactly. ``vistok.token_file.TokenWriter``
        writes images as they come, with their names, and can entropy-code them.

        Raises:
            TokenFileError: the file cannot be written.
            VistokError: the codebook size is unknown, or the latents are float64.
        """
        from vistok.token_file import TokenWriter, check_expansion

        with TokenWriter(path) as writer:
            sizes = writer.write(self)
            check_expansion(self.lengths.tolist(), self.kind, self.channels, sum(sizes))  # could it be read again?

    @classmethod
    def load(cls, path: str | Path) -> Tokens:
        """Read a ``.vtk`` file: onto the CPU, with as many columns as its longest row has tokens.

        ``vistok.token_file.TokenFile`` reads single images, and what is left of damaged files.

        Raises:
            TokenFileError: it cannot be read, is no token file, is of a newer version, or is truncated or damaged.
        """
        from vistok.token_file import TokenFile

        with TokenFile.open(path) as file:
            return file.read_all()


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _extremes(tensor: Tensor) -> tuple[int, int]:
    """Smallest and largest value, (0, 0) of none, with one wait for the device."""
    return tuple(torch.stack(tensor.aminmax()).tolist()) if tensor.numel() else (0, 0)


def _mask(lengths: Tensor, columns: int) -> Tensor:
    return torch.arange(columns, device=lengths.device) < lengths[:, None]


def _cut(data: Tensor, lengths: Tensor) -> Tensor:
    """0 past each row's length; ``where`` and not a product, as what is cut may be NaN."""
    mask = _mask(lengths, data.shape[1])
    return torch.where(mask if data.ndim == 2 else mask[..., None], data, data.new_zeros(()))


def _whole_numbers(values: Any, name: str, device: torch.device) -> Tensor:
    """``values`` as an int64 tensor, if they are whole numbers."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VistokError(f"{name}: wanted whole numbers, got {values!r}") from error
    if tensor.numel() and not _is_whole(tensor):
        raise VistokError(f"{name}: wanted whole numbers, got {tensor.dtype}")
    return tensor.to(device, torch.int64)


def checked_codebook(size: Any, continuous: bool) -> int | tuple[int, ...] | None:
    """A codebook size in plain integers, or an error."""
    if size is None:
        return None
    if continuous:
        raise VistokError(f"continuous tokens have no codebook, got codebook_size={size!r}")
    several = isinstance(size, (list, tuple))
    factors = tuple(size) if several else (size,)
    whole = all(isinstance(factor, (int, np.integer)) and not isinstance(factor, bool) for factor in factors)
    if not factors or not whole or min(factors) < 1 or math.prod(map(int, factors)) > _MAX_VOCAB_SIZE:
        raise VistokError(f"codebook_size is a whole number from 1 to 2^62, or a tuple of its factors, got {size!r}")
    return tuple(map(int, factors)) if several else int(size)


def codebook_product(codebook_size: int | tuple[int, ...]) -> int:
    """K, of a checked codebook size."""
    return math.prod(codebook_size) if isinstance(codebook_size, tuple) else codebook_size
