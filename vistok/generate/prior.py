"""An autoregressive generator as the prior of entropy coding: the better it foretells tokens, the fewer bytes they take.

Both sides must count with the very same numbers, on every machine, and floating-point arithmetic does not promise that.
So the model runs in double precision, its logits are rounded to a grid, and from there on all is
whole numbers. A logit that lies so near to the middle between two grid points that another machine might round it the
other way is told from the rest by the encoder, which says so in the stream (a flag that costs next to nothing
where it is not needed) and codes that token without the model.
"""

from __future__ import annotations

import copy
import hashlib
import math
from decimal import Decimal, getcontext, localcontext
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.entropy import EntropyCoder, weights_model
from vistok.errors import VistokError
from vistok.generate.autoregressive import AutoregressiveGenerator
from vistok.generate.base import evaluating

_VERSION = 1
_STEPS = 64  # grid points a nat
_WEIGHT_BITS = 22  # of the likeliest value; what is less likely than 2^-22 of it has the weight 1
# Double precision differs by some 1e-13 between machines; a thousand times more is still rare to meet.
_UNSURE = 1e-8  # grid steps
_FLAG_WEIGHTS = np.array([(1 << 22) - 1, 1])


class LearnedPrior(EntropyCoder):
    """Codes ids with the distributions of a generator, each given the ids before it and no condition.

    Args:
        generator: an autoregressive one; it is copied, in double precision, to the CPU.
    Raises:
        VistokError: a generator of another kind, or one that was never without its condition in training.
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
        self.generator = copy.deepcopy(generator).to(device="cpu", dtype=torch.float64).eval()
        self.title = generator.name or generator.family
        size = generator.codebook_size
        self.levels = size if isinstance(size, tuple) else (size,)

    @cached_property
    def hash(self) -> str:
        """Of every bit of the weights, and of how they are made numbers of."""
        digest = hashlib.sha256(f"{_VERSION}/{self.generator.family}/{self.generator.config}".encode())
        for name, tensor in sorted(self.generator.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self, *, embed: bool) -> dict[str, Any]:
        """A model is never put into a file."""
        return {"kind": "learned", "hash": self.hash, "model": self.title}

    def begin(self, known: np.ndarray | None = None) -> _Pass:
        """A pass over one image; with all ids known, the model reads them at once."""
        return _Pass(self.generator, known)

    def write_block(self, encoder: Any, ids: np.ndarray, start: int, end: int, state: _Pass) -> None:
        for position in range(start, end):
            sure = all(part.sure for part in state.parts(position, int(ids[position])))
            encoder.encode(int(not sure), _flag_model())
            for part in state.parts(position, int(ids[position])):
                encoder.encode(part.digit, part.model if sure else part.flat)
            state.take(int(ids[position]))

    def read_block(self, decoder: Any, start: int, end: int, state: _Pass) -> np.ndarray:
        out = []
        for position in range(start, end):
            unsure = int(decoder.decode(_flag_model()))
            token, place = 0, 1
            digits: list[int] = []
            for level in state.factors:
                part = state.part(position, digits)
                digits.append(int(decoder.decode(part.flat if unsure else part.model)))
                token += place * digits[-1]
                place *= level
            state.take(token)
            out.append(token)
        return np.array(out, dtype=np.int64)


class _Part:
    """The distribution of one factor of a token, as whole numbers."""

    def __init__(self, logits: Tensor, digit: int = 0) -> None:
        self.digit = digit
        scaled = (logits.max() - logits).double() * _STEPS
        scaled = scaled.clamp_max(float(len(_weights()) - 1)).numpy()
        rounded = np.rint(scaled)
        self.sure = bool((np.abs(np.abs(scaled - rounded) - 0.5) > _UNSURE).all())
        self._rounded = rounded.astype(np.int64)

    @cached_property
    def model(self) -> Any:
        """The range coder's."""
        return weights_model(_weights()[self._rounded])

    @property
    def flat(self) -> Any:
        """All values alike."""
        return weights_model(np.ones(len(self._rounded), dtype=np.int64))


class _Pass:
    """The model on its way through the tokens of one image.

    Attributes:
        factors: values of each factor of a token that the model tells apart.
    """

    def __init__(self, generator: AutoregressiveGenerator, known: np.ndarray | None) -> None:
        self.generator, self.factors = generator, generator.token_factors
        self._known = None if known is None else [int(value) for value in known]
        self._met = 0
        if known is not None and len(known) > generator.num_tokens:
            raise VistokError(f"this prior knows images of {generator.num_tokens} tokens, got {len(known)}")
        with torch.no_grad(), evaluating(generator):
            self._cache = generator.new_cache(1)
            first = generator.read_condition(generator.encode_condition(None), self._cache)
            self._states = [first]
            if known is not None and len(known) > 1:
                read = generator.read_tokens(torch.from_numpy(known[None, :-1].astype(np.int64)), 0, self._cache)
                self._states += list(read[0][:, None])

    def part(self, position: int, digits: list[int], digit: int = 0) -> _Part:
        """Of the factor after ``digits``."""
        if position >= self.generator.num_tokens:
            raise ValueError("more tokens than the prior knows")  # damaged bytes may ask for them
        with torch.no_grad(), evaluating(self.generator):
            if position == len(self._states):
                last = torch.tensor([[self._last]])
                self._states.append(self.generator.read_tokens(last, position - 1, self._cache)[:, -1])
            earlier = torch.tensor([digits], dtype=torch.int64).reshape(1, len(digits))
            return _Part(self.generator.factor_logits(self._states[position], earlier)[0], digit)

    def parts(self, position: int, token: int) -> list[_Part]:
        """Of all factors of a token."""
        out: list[_Part] = []
        digits: list[int] = []
        for level in self.factors:
            out.append(self.part(position, digits, token % level))
            digits.append(token % level)
            token //= level
        return out

    def take(self, token: int) -> None:
        """Go on behind a token."""
        if token >= math.prod(self.factors):
            raise ValueError("no such token")
        if self._known is not None and token != self._known[self._met]:
            raise ValueError("not the token that was known")  # the states behind it are another image's
        self._last = token
        self._met += 1


@cache
def _flag_model() -> Any:
    return weights_model(_FLAG_WEIGHTS)


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
