"""Conditions that are classes: their numbers, int64 [B], of which -1 is the null class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistok.generate.base import Generator, class_labels


class ClassConditions(Generator):
    """What generators of classes have in common; their configuration has ``num_classes``, ``class_names``, ``class_dropout``."""

    @property
    def conditional(self) -> bool:
        return self.config.num_classes > 0

    @property
    def guidable(self) -> bool:
        return self.conditional and self.config.class_dropout > 0

    def encode_condition(self, condition: Any) -> Tensor:
        """Class numbers or names, one or many -> int64 [B]; None and -1 are the null class, returned as -1."""
        config = self.config
        labels = class_labels(
            condition, num_classes=config.num_classes, class_names=config.class_names, title=self._title
        )
        return labels.to(self.device)

    def null_condition(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, -1)

    def join_conditions(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])

    def hide_conditions(self, condition: Tensor, hidden: Tensor) -> Tensor:
        return condition.masked_fill(hidden, -1)
