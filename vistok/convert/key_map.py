"""Names of published tensors to ours and back, as rules that hold in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

# How a tensor's shape differs: (published to ours, ours to published). Values never change.
_RESHAPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "": (lambda x: x, lambda x: x),
    "conv1x1": (lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None]),  # a 1x1 convolution as a linear layer
    "row": (lambda x: x[None], lambda x: x[0]),  # without a batch axis
    "second_axis": (lambda x: x[:, 0][None], lambda x: x[0][:, None]),  # [N, 1, D]: the batch axis comes second
    "channels": (lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]),  # one weight a channel
    "image": (lambda x: x[0], lambda x: x[None]),  # a constant [C, 1, 1]
    "columns": (
        lambda x: x[0, 0].t().contiguous(),
        lambda x: x.t()[None, None].contiguous(),
    ),  # [1, 1, D, N]: a column a position
}


@dataclass(frozen=True)
class Rule:
    """One pair of names; ``{}`` stands for a number (the same on both sides, in order), ``*`` for any rest."""

    published: str
    ours: str
    reshape: str = ""


class KeyMap:
    """A list of rules; the first that matches a name is used."""

    def __init__(self, rules: Iterable[Rule | tuple[str, ...]]) -> None:
        self.rules = [rule if isinstance(rule, Rule) else Rule(*rule) for rule in rules]
        self._to_ours = [(_pattern(rule.published), _template(rule.ours), rule.reshape) for rule in self.rules]
        self._to_published = [(_pattern(rule.ours), _template(rule.published), rule.reshape) for rule in self.rules]

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename and reshape a published state; names without a rule are kept, for the strict report."""
        return self._apply(self._to_ours, state, 0)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back: the published names and shapes, the same values."""
        return self._apply(self._to_published, state, 1)

    def name_to_ours(self, name: str) -> str:
        """Our name of one published tensor."""
        return self._rename(self._to_ours, name)[0]

    @staticmethod
    def _rename(table: list[tuple[re.Pattern[str], str, str]], name: str) -> tuple[str, str]:
        for pattern, template, reshape in table:
            match = pattern.fullmatch(name)
            if match:
                return template.format(*match.groups()), reshape
        return name, ""

    def _apply(self, table: Any, state: Mapping[str, Tensor], direction: int) -> dict[str, Tensor]:
        out = {}
        for name, tensor in state.items():
            renamed, reshape = self._rename(table, name)
            try:
                out[renamed] = _RESHAPES[reshape][direction](tensor)
            except (IndexError, RuntimeError):  # another number of axes than the layout has: the strict report names it
                out[renamed] = tensor
        return out


@dataclass(frozen=True)
class Source:
    """A published layout.

    Attributes:
        title: what to call it in messages.
        family: our family that it becomes.
        signature: tensor names that every checkpoint of the layout has.
        read_config: (shapes, published configuration or None, image size or None) -> our family's configuration.
        key_map: configuration -> the names.
        wrap_config: our configuration -> the published one, as far as it tells.
        ignorable: start of the names of tensors that only training uses, in layouts that we do not know; "" for none.
        losses: starts of the names of tensors of other networks that are left out: the losses', a text encoder's.
        metadata: published configuration -> the metadata of its safetensors file, where it is kept there too.
    """

    title: str
    family: str
    signature: frozenset[str]
    read_config: Callable[..., Any]
    key_map: Callable[[Any], KeyMap]
    wrap_config: Callable[[Any], dict[str, Any]]
    ignorable: str = ""
    losses: str | tuple[str, ...] = ()
    metadata: Callable[[Mapping[str, Any]], dict[str, str]] | None = None


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.*)")
    return re.compile(escaped)


def _template(text: str) -> str:
    return text.replace("*", "{}")


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that ``pattern`` (with one group) finds in the names; 0 if none."""
    numbers = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1
