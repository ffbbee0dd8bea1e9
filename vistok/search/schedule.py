"""How long the rows of a beam are after each step."""

from __future__ import annotations

from collections.abc import Sequence

from vistok.errors import ConfigError

KINDS = ("geometric", "linear", "fixed")


def token_schedule(
    kind: str | Sequence[int],
    *,
    max_steps: int,
    max_tokens: int,
    start: int = 0,
    base: float = 2.0,
    tokens_per_step: int = 32,
) -> tuple[int, ...]:
    """The lengths after each step, never falling and never above ``max_tokens``.

    Args:
        kind: ``geometric`` (int(base^s): 1, 2, 4, ...), ``linear`` (tokens_per_step * (s + 1)), ``fixed``
            (s + 1), for the steps s = 0, 1, ...; or the lengths themselves, which then tell the steps too.
        max_steps: how many steps.
        max_tokens: longer ones are cut to it; entries may so repeat.
        start: tokens there are at the beginning: lengths count from there, after they were cut (as the
            official search does), and are cut again.
        base: of ``geometric``.
        tokens_per_step: of ``linear``.
    Raises:
        ConfigError: an unknown kind, or lengths that fall.
    """
    if not isinstance(kind, str):
        lengths = [int(length) for length in kind]
        if not lengths or min(lengths) < 1 or lengths != sorted(lengths):
            raise ConfigError(f"a token schedule is lengths of 1 or more that never fall, got {list(kind)}")
    elif kind == "geometric":
        lengths = [int(base**step) for step in range(max_steps)]
    elif kind == "linear":
        lengths = [tokens_per_step * (step + 1) for step in range(max_steps)]
    elif kind == "fixed":
        lengths = [step + 1 for step in range(max_steps)]
    else:
        raise ConfigError(f"token_schedule is one of {', '.join(KINDS)}, or lengths; got {kind!r}")
    return tuple(min(min(length, max_tokens) + start, max_tokens) for length in lengths)
