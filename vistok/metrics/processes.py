"""Sums over the processes of a run; without an accelerator, or with one process, the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vistok.errors import VistokError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def sum_over_processes(x: Tensor, accelerator: Accelerator | None) -> Tensor:
    """The sum of ``x`` over all processes, where ``x`` is; shapes and types must agree."""
    if accelerator is None or accelerator.num_processes == 1:
        return x
    return accelerator.reduce(x.to(accelerator.device), reduction="sum").to(x.device)


def main_first(make: Callable[[], T], accelerator: Accelerator | None) -> T:
    """What ``make`` gives, made on the main process first, so that it alone downloads.

    Raises:
        Exception: what ``make`` raised here; or a VistokError where it failed on another process only,
            for else this one would wait for ever.
    """
    if accelerator is None:
        return make()
    failure: Exception | None = None
    made: list[T] = []
    with accelerator.main_process_first():
        try:
            made.append(make())
        except Exception as error:
            failure = error
    failures = sum_over_processes(torch.tensor(int(failure is not None)), accelerator)
    if failure is not None:
        raise failure
    if failures:
        raise VistokError(f"{int(failures)} of {accelerator.num_processes} processes failed; their messages say why")
    return made[0]


def all_agree(value: int, accelerator: Accelerator | None) -> bool:
    """Whether ``value`` is the same on all processes."""
    processes = 1 if accelerator is None else accelerator.num_processes
    total, squares = sum_over_processes(torch.tensor([value, value * value]), accelerator).tolist()
    return processes * squares == total * total
