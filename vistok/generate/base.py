"""The contract of every generator: a condition to ``Tokens``, which a tokenizer decodes."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.generate.sampling import SamplingConfig, row_seeds
from vistok.models.base import PretrainedModel
from vistok.tokens import Tokens


@dataclass(frozen=True)
class GenerationResult:
    """What a generator made.

    Attributes:
        tokens: B rows.
        seeds: of each row; the same seed under the same condition and settings gives the same row again.
        token_forwards: positions that went through the transformer, counted row by row; guidance counts twice.
        log_probs: [B, L], of each token under the model's conditional distribution itself (no guidance,
            temperature 1, no filter), 0 where a row has no token; None unless asked for.
        draw_log_probs: [B, L], of each token under the distribution it was drawn from; None unless asked for.
    """

    tokens: Tokens
    seeds: tuple[int, ...]
    token_forwards: int
    log_probs: Tensor | None = None
    draw_log_probs: Tensor | None = None


class Generator(PretrainedModel, ABC):
    """Draws ``Tokens`` under a condition.

    What only some families can do is asked of the object: ``conditional`` (takes conditions),
    ``guidable`` (was trained without its condition now and then, so guidance works), ``autoregressive``
    (writes tokens in order: takes a prefix, and has rollouts that a search can branch), ``continuous``
    (makes latents instead of ids).

    A family implements ``encode_condition``, ``_generate``, ``token_log_probs`` and ``forward``.
    """

    autoregressive: bool = False

    @property
    def continuous(self) -> bool:
        """Whether it makes latents instead of ids."""
        return False

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """The largest number of tokens of a row."""

    @property
    @abstractmethod
    def codebook_size(self) -> int | tuple[int, ...] | None:
        """Of the tokens it makes, as its tokenizer states it; None for latents."""

    @property
    @abstractmethod
    def conditional(self) -> bool:
        """Whether it takes a condition."""

    @property
    @abstractmethod
    def guidable(self) -> bool:
        """Whether it knows the null condition."""

    @property
    def num_classes(self) -> int:
        """Of its conditions; 0 where these are no classes."""
        return getattr(self.config, "num_classes", 0)

    @property
    def sampling(self) -> SamplingConfig:
        """The defaults of ``generate``, stored with the weights."""
        return self.config.sampling

    @abstractmethod
    def encode_condition(self, condition: Any) -> Any:
        """What the model reads for a condition, as something with one entry a row (``len``, indexing by tensor).

        Args:
            condition: of one row, or a sequence with one a row; None is the null condition of one row.
        Raises:
            VistokError: it is not one of this model's conditions.
        """

    def training_condition(self, batch: Mapping[str, Any]) -> Any:
        """What ``forward`` is to read of a training batch, which has ``label`` [B] and ``caption``, B texts."""
        return batch["label"] if self.conditional else torch.full_like(batch["label"], -1)

    def sampling_condition(self, batch: Mapping[str, Any]) -> Any:
        """What ``generate`` and ``log_prob`` are to read of such a batch, in previews and validation."""
        return self.training_condition(batch)

    @classmethod
    def data_facts(cls, values: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """What a configuration with these ``values`` takes from the captions of the training data."""
        return {}

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        condition: Any = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The training loss.

        Args:
            ids: int64 [B, L], L up to ``num_tokens``; of a continuous generator latents, float [B, L, C].
            condition: encoded, with B entries; None is the null condition for all.
            lengths: int64 [B], the tokens of each row that count; None counts all.
            sample_seeds: int64 [B]; the dropped conditions become a function of them, whatever the batch is.
                None draws from torch's global generator.
            progress: the share of the training that is done, in [0, 1], for what changes in its course.
        Returns:
            ``loss`` (scalar, with gradient), ``nll_per_token`` (scalar, nats; not of continuous generators), and
            others by name.
        """

    @abstractmethod
    def token_log_probs(self, tokens: Tokens, condition: Any = None) -> Tensor:
        """The log-probability of every token [B, L] under the condition, in nats; 0 past a row's length."""

    def log_prob(self, tokens: Tokens, condition: Any = None) -> Tensor:
        """The log-probability of every row [B], in nats.

        Args:
            tokens: B rows.
            condition: one for all rows, or one a row.
        """
        return self.token_log_probs(tokens, condition).sum(dim=-1)

    @torch.no_grad()
    def generate(
        self,
        condition: Any = None,
        num: int | None = None,
        *,
        length: int | None = None,
        prefix: Tokens | None = None,
        seeds: int | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        return_log_probs: bool = False,
        **sampling: Any,
    ) -> GenerationResult:
        """Draw tokens, without gradients and with dropout off.

        Row i is a function of its condition, its seed and the settings: not of the batch it is drawn in,
        but for the rounding of floating-point numbers.

        Args:
            condition: one condition, or a sequence of them; None is the null condition.
            num: rows for each condition, side by side; None is one.
            length: make the first ``length`` tokens only, 1..num_tokens; None makes all.
            prefix: the tokens to go on from, one row a condition, all of one length; autoregressive models.
            seeds: one a row; or one number for all, from which the rows' seeds are derived.
            generator: draws the seeds instead.
            return_log_probs: also give the log-probabilities of the tokens.
            sampling: differences from ``self.sampling``, as ``temperature=0.9, top_k=4, cfg_scale=2.0``.
        Raises:
            VistokError: an unknown condition or option, or values out of range.
        """
        settings = self.sampling.updated(**sampling)
        encoded = self.encode_condition(condition)
        num = 1 if num is None else num
        length = self.num_tokens if length is None else length
        if num < 1:
            raise VistokError(f"num is 1 or more rows for each condition, got {num}")
        if not 1 <= length <= self.num_tokens:
            raise VistokError(f"{self._title} makes 1 to {self.num_tokens} tokens, got length={length}")
        if settings.guided and not self.guidable:
            raise VistokError(
                f"{self._title} was not trained for guidance (it has no classes, or class_dropout is 0); "
                f"leave cfg_scale at 1, got {settings.cfg_scale}"
            )
        self._check_prefix(prefix, len(encoded), length)
        drawn_seeds = row_seeds(len(encoded) * num, seeds, generator)
        with evaluating(self):
            result = self._generate(encoded, num, length, prefix, drawn_seeds, settings)
        return result if return_log_probs else GenerationResult(result.tokens, result.seeds, result.token_forwards)

    @abstractmethod
    def _generate(
        self,
        condition: Any,
        num: int,
        length: int,
        prefix: Tokens | None,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> GenerationResult:
        """``generate`` after its arguments were checked; ``seeds`` has ``len(condition) * num`` entries."""

    def as_tokens(self, values: Tensor) -> Tokens:
        """Ids [B, L], or latents [B, L, C], as tokens of the tokenizer that this model was trained with."""
        config = self.config
        return Tokens(
            **{"latents" if self.continuous else "ids": values},
            codebook_size=self.codebook_size,
            family=config.tokenizer_family,
            model=config.tokenizer_model,
            weight_hash=config.tokenizer_hash,
        )

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise a ``VistokError`` unless these tokens are of this model's kind."""
        if tokens.is_continuous != self.continuous or tokens.codebook_size not in (None, self.codebook_size):
            got = "continuous latents" if tokens.is_continuous else f"ids of the codebook {tokens.codebook_size}"
            wanted = "continuous latents" if self.continuous else f"the codebook {self.codebook_size}"
            raise VistokError(f"{self._title} works with {wanted}, got {got}")
        if tokens.num_tokens > self.num_tokens:
            raise VistokError(f"{self._title} has {self.num_tokens} tokens a row, got {tokens.num_tokens}")

    def _check_prefix(self, prefix: Tokens | None, num_conditions: int, length: int) -> None:
        if prefix is None:
            return
        if not self.autoregressive:
            raise VistokError(f"{self._title} does not write tokens in order, so it cannot go on from a prefix")
        self.check_tokens(prefix)
        if len(prefix) != num_conditions or bool((prefix.lengths != prefix.num_tokens).any()):
            raise VistokError(
                f"a prefix has one row for each of {num_conditions} conditions, all of one length; "
                f"got {len(prefix)} rows of lengths {prefix.lengths.tolist()[:8]}"
            )
        if prefix.num_tokens > length:
            raise VistokError(f"the prefix has {prefix.num_tokens} tokens already, more than length={length}")

    @property
    def _title(self) -> str:
        return self.name or self.family


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off inside; every submodule's mode is put back after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def class_labels(
    condition: Any, *, num_classes: int, class_names: Sequence[str] = (), title: str = "this model"
) -> Tensor:
    """Class numbers int64 [B] from class numbers or names, one or many; None and -1 are the null class, -1.

    Raises:
        VistokError: unknown class; the message has the range or the nearest names.
    """
    from vistok.errors import nearest

    if condition is None:
        return torch.tensor([-1])
    if isinstance(condition, Tensor):
        if condition.is_floating_point() or condition.ndim > 1:
            raise VistokError(f"{title} takes class numbers [B], got {condition.dtype} {list(condition.shape)}")
        labels = condition.reshape(-1).long()
    else:
        entries = [condition] if isinstance(condition, (str, int)) else list(condition)
        numbers = {name: number for number, name in enumerate(class_names)}
        for entry in entries:
            if isinstance(entry, str) and entry not in numbers:
                raise VistokError(f"{title} has no class {entry!r}; {nearest(entry, numbers)}")
            if not isinstance(entry, str) and entry is not None and not _is_number(entry):
                raise VistokError(f"{title} takes class numbers or names, got {_short(entry)}")
        labels = torch.tensor(
            [numbers[entry] if isinstance(entry, str) else -1 if entry is None else int(entry) for entry in entries],
            dtype=torch.int64,
        )
    if not len(labels):
        raise VistokError(f"{title} got an empty list of conditions")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= num_classes:
        wanted = f"classes 0 to {num_classes - 1}" if num_classes else "no classes: leave the condition out"
        raise VistokError(f"{title} has {wanted}; got {low if low < -1 else high}")
    return labels


def _is_number(value: Any) -> bool:
    """Whether it is a whole number, as an int, a NumPy scalar or a tensor of one int."""
    try:
        operator.index(value)
    except (TypeError, ValueError):
        return False
    return True


def _short(value: Any) -> str:
    """A value in an error: a tensor by its shape."""
    return f"a tensor {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.80}"
