"""What the configurations of all generators have, and what they are checked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vistok.errors import ConfigError


@dataclass(frozen=True)
class GeneratorConfig:
    """What every generator's configuration has besides its ``codebook_size``.

    Attributes:
        tokenizer_family, tokenizer_model, tokenizer_hash: of the tokenizer whose tokens it was trained on.
    """

    tokenizer_family: str = ""
    tokenizer_model: str = ""
    tokenizer_hash: str = ""

    @property
    def vocab_size(self) -> int:
        """K, the number of different ids; 0 for latents."""
        size = self.codebook_size
        return math.prod(size) if isinstance(size, tuple) else size or 0


def check_config(config: Any, *, sizes: Sequence[str], shares: Sequence[str]) -> None:
    """Refuse values that no model can be built of.

    Args:
        config: with ``codebook_size``, ``num_classes``, ``class_names``, ``width`` and, where one count serves all attention,
            ``num_heads``.
        sizes: the names of those that are 1 or more.
        shares: the names of those that are from 0 to below 1.
    Raises:
        ConfigError: naming what is wrong, with its value.
    """
    factors = config.codebook_size if isinstance(config.codebook_size, tuple) else (config.codebook_size,)
    if not factors or min(factors) < 2:
        raise ConfigError(f"codebook_size is two or more, or such factors; got {config.codebook_size}")
    wrong = [f"{name}={getattr(config, name)}" for name in sizes if getattr(config, name) < 1]
    if wrong:
        raise ConfigError(f"{', '.join(sizes)} are 1 or more, got {', '.join(wrong)}")
    if config.num_classes < 0:
        raise ConfigError(f"num_classes is 0 (none) or more, got {config.num_classes}")
    if config.class_names and len(config.class_names) != config.num_classes:
        raise ConfigError(f"{len(config.class_names)} class_names for {config.num_classes} classes")
    if "num_heads" in sizes:
        check_heads(config.width, config.num_heads)
    check_shares(config, shares)


def check_heads(width: int, num_heads: int) -> None:
    """Refuse a width that the heads cannot share."""
    if width % num_heads:
        raise ConfigError(f"the width {width} is not a multiple of the {num_heads} heads")


def check_shares(config: Any, names: Sequence[str]) -> None:
    """Refuse shares of a configuration that are not from 0 to below 1."""
    wrong = [f"{name}={getattr(config, name)}" for name in names if not 0.0 <= getattr(config, name) < 1.0]
    if wrong:
        raise ConfigError(f"{', '.join(names)} are from 0 to below 1, got {', '.join(wrong)}")
