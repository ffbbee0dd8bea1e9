"""An autoregressive generator as the prior of entropy coding: the better it foretells tokens, the fewer bytes they take.

Both sides must count with the very same numbers, on every machine, and floating-point arithmetic does not promise that.
So the model runs in double precision, its logits are rounded to a grid, and from there on all is
whole numbers. A logit that lies so near to the middle between two grid points that another machine might round it the
other way is told from the rest by the encoder, which says so in the stream (a flag that costs next to nothing
where it is not needed) and codes that token without the model. So it does with tokens that the model did not expect at all: an
image that the model knows nothing of takes little more than its plain ids.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from decimal import Decimal, getcontext, localcontext
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.config import to_dict
from vistok.entropy import EntropyCoder, weights_model
from vistok.errors import VistokError
from vistok.generate.autoregressive import AutoregressiveGenerator
from vistok.generate.base import evaluating

_VERSION = 2
# Of a generator's configuration, what says nothing of the distribution of tokens.
_NOT_COUNTED = (
    "sampling",
    "class_names",
    "tokenizer_family",
    "tokenizer_model",
    "tokenizer_hash",
    "dropout",
    "class_dropout",
)
_STEPS = 64  # grid points a nat
_WEIGHT_BITS = 22  # of the likeliest value; what is less likely than 2^-22 of it has the weight 1
# Double precision differs by some 1e-13 between machines; a thousand times more is still rare to meet.
_UNSURE = 1e-8  # grid steps
# Of the flag that a token is coded without the model, among this image's tokens so far: first 1 in 256, then as it happens.
_FIRST_FLAGS, _FLAG_GAIN = (255, 1), 64


class LearnedPrior(EntropyCoder):
    """Codes ids with the distributions of a generator, each given the ids before it and no condition.

    Args:
        generator: an autoregressive one; it is copied, in double precision, to the CPU.
    Raises:
        VistokError: a generator of another kind, one that was never without its condition in training, or one that reads
            features.
    """

    def __init__(self, generator: AutoregressiveGenerator) -> None:
        if not isinstance(generator, AutoregressiveGenerator):
            raise VistokError(
                f"a prior is an autoregressive generator, which gives each token's distribution; got a "
                f"{type(generator).__name__}"
            )
        if generator.conditional and not generator.guidable:
            raise VistokError(
                f"{generator.name or generator.family} always saw its condition in training, so it knows no tokens without "
                "one; train with class_dropout"
            )
        if generator.reads_features:
            raise VistokError(
                f"{generator.name or generator.family} reads captions by a text encoder, whose numbers are not the same on every "
                "machine, so what it coded could not be decoded on another; take a generator of classes, or of no condition"
            )
        self.generator = copy.deepcopy(generator).to(device="cpu", dtype=torch.float64).eval()
        self.title = generator.name or generator.family
        size = generator.codebook_size
        self.levels = size if isinstance(size, tuple) else (size,)
        self._known: tuple[bytes, list[list[_Part]]] = (b"", [])

    @cached_property
    def hash(self) -> str:
        """Of every bit of the weights, and of how they are made numbers of.

        Only differences from a family's default configuration count, so that an option that a later version adds changes nothing.
        """
        config = self.generator.config
        default = to_dict(type(config)())
        counted = {
            name: value
            for name, value in sorted(to_dict(config).items())
            if name not in _NOT_COUNTED and value != default[name]
        }
        digest = hashlib.sha256(f"{_VERSION}/{self.generator.family}/{json.dumps(counted)}".encode())
        for name, tensor in sorted(self.generator.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self, *, embed: bool) -> dict[str, Any]:
        """A model is never put into a file."""
        return {"kind": "learned", "hash": self.hash, "model": self.title}

    def begin(self, known: np.ndarray | None = None) -> _Pass:
        """A pass over one image; with all ids known, the model reads them at once, and once."""
        if known is None:
            return _Pass(self.generator)
        if len(known) > self.generator.num_tokens:
            raise VistokError(f"this prior knows images of {self.generator.num_tokens} tokens, got {len(known)}")
        key = known.tobytes() + b"."
        if self._known[0] != key:  # the coder comes back several times, to find the shortest bytes
            self._known = (key, _known_parts(self.generator, torch.from_numpy(known.astype(np.int64))))
        return _Pass(self.generator, self._known[1])

    def write_block(self, encoder: Any, ids: np.ndarray, start: int, end: int, state: _Pass) -> None:
        for position in range(start, end):
            parts = state.parts(position)
            plain = not all(part.sure for part in parts) or state.flags.cost(True) + sum(
                part.flat_bits for part in parts
            ) < state.flags.cost(False) + sum(part.bits for part in parts)
            encoder.encode(int(plain), state.flags.model)
            state.flags.count(plain)
            for part in parts:
                encoder.encode(part.digit, part.flat if plain else part.model)

    def read_block(self, decoder: Any, start: int, end: int, state: _Pass) -> np.ndarray:
        out = []
        for position in range(start, end):
            plain = bool(decoder.decode(state.flags.model))
            state.flags.count(plain)
            digits: list[int] = []
            while len(digits) < len(state.factors):
                part = state.part(position, digits)
                digits.append(int(decoder.decode(part.flat if plain else part.model)))
            out.append(state.take(digits))
        return np.array(out, dtype=np.int64)


class _Part:
    """The distribution of one factor of a token, as whole numbers.

    Args:
        logits: float64 [K].
        digit: the factor's value, where it is known.
    """

    def __init__(self, logits: Tensor, digit: int = -1) -> None:
        self.digit = digit
        scaled = (logits.max() - logits) * _STEPS
        scaled = scaled.clamp_max(float(len(_weights()) - 1)).numpy()
        rounded = np.rint(scaled)
        self.sure = bool((np.abs(np.abs(scaled - rounded) - 0.5) > _UNSURE).all())
        self._rounded = rounded.astype(np.int64)

    @cached_property
    def model(self) -> Any:
        """The range coder's."""
        return weights_model(_weights()[self._rounded])

    @cached_property
    def flat(self) -> Any:
        """All values alike."""
        return weights_model(np.ones(len(self._rounded), dtype=np.int64))

    @property
    def bits(self) -> float:
        """What the digit takes with the model."""
        weights = _weights()[self._rounded]
        return math.log2(int(weights.sum()) / int(weights[self.digit]))

    @property
    def flat_bits(self) -> float:
        """What it takes without."""
        return math.log2(len(self._rounded))


class _Flags:
    """Which tokens of an image were coded without the model so far, and what the next one's flag is expected to be."""

    def __init__(self) -> None:
        self._weights = list(_FIRST_FLAGS)

    @property
    def model(self) -> Any:
        """The range coder's."""
        return _flag_model(*self._weights)

    def cost(self, plain: bool) -> float:
        """Bits of a flag."""
        return math.log2(sum(self._weights) / self._weights[plain])

    def count(self, plain: bool) -> None:
        """Of the token that comes."""
        self._weights[plain] += _FLAG_GAIN


@torch.no_grad()
def _known_parts(generator: AutoregressiveGenerator, ids: Tensor) -> list[list[_Part]]:
    """For every one of the ids [L], the distributions of its factors."""
    with evaluating(generator):
        cache = generator.new_cache(1)
        states = generator.read_condition(generator.encode_condition(None), cache)  # [1, W]
        if len(ids) > 1:
            states = torch.cat([states, generator.read_tokens(ids[None, :-1], 0, cache)[0]])
        digits = torch.empty(len(ids), 0, dtype=torch.int64)
        out: list[list[_Part]] = [[] for _ in ids]
        for level in generator.token_factors:
            logits, values = generator.factor_logits(states[: len(ids)], digits), ids % level
            for parts, row, value in zip(out, logits, values.tolist(), strict=True):
                parts.append(_Part(row, value))
            digits, ids = torch.cat([digits, values[:, None]], dim=1), ids // level
    return out


class _Pass:
    """The model on its way through the tokens of one image.

    Args:
        generator: in double precision.
        known: the parts of all tokens, where they are known; a pass that leaves them ends in a ValueError.

    Attributes:
        factors: values of each factor of a token that the model tells apart.
        flags: of the tokens so far.
    """

    def __init__(self, generator: AutoregressiveGenerator, known: list[list[_Part]] | None = None) -> None:
        self.generator, self.factors = generator, generator.token_factors
        self.flags = _Flags()
        self._known, self._hidden = known, None
        if known is None:
            with torch.no_grad(), evaluating(generator):
                self._cache = generator.new_cache(1)
                self._hidden = generator.read_condition(generator.encode_condition(None), self._cache)

    def parts(self, position: int) -> list[_Part]:
        """Of all factors of a token that is known."""
        return self._known[position]

    def part(self, position: int, digits: list[int]) -> _Part:
        """Of the factor after ``digits``, of the token at ``position``."""
        if self._known is not None:
            parts = self._known[position]
            if any(part.digit != digit for part, digit in zip(parts, digits, strict=False)):
                raise ValueError("not the token that was known")
            return parts[len(digits)]
        if position >= self.generator.num_tokens:
            raise ValueError("more tokens than the prior knows")  # damaged bytes may ask for them
        with torch.no_grad(), evaluating(self.generator):
            if self._hidden is None:
                self._hidden = self.generator.read_tokens(self._last, position - 1, self._cache)[:, -1]
            earlier = torch.tensor([digits], dtype=torch.int64).reshape(1, len(digits))
            return _Part(self.generator.factor_logits(self._hidden, earlier)[0])

    def take(self, digits: list[int]) -> int:
        """Go on behind a token of these factors: its id."""
        token, place = 0, 1
        for digit, level in zip(digits, self.factors, strict=True):
            token, place = token + place * digit, place * level
        self._last, self._hidden = torch.tensor([[token]]), None
        return token


@cache
def _flag_model(*weights: int) -> Any:
    return weights_model(np.array(weights))


@cache
def _weights() -> np.ndarray:
    """2^22 exp(-n / 64), rounded down to whole numbers of 1 or more, for n = 0, 1, ...

    In decimal arithmetic, which is the same everywhere, as libraries' exponentials are not.
    """
    with localcontext() as context:
        context.prec = max(40, getcontext().prec)
        ratio = (Decimal(-1) / _STEPS).exp()
        values, value = [], Decimal(1 << _WEIGHT_BITS)
        while value >= 1:
            values.append(int(value))
            value *= ratio
    return np.array([*values, 1], dtype=np.int64)
