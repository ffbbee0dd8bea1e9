"""Sums over the processes of a run (without an accelerator, or with one process, the identity), and scripts that several run."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

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


def gather_objects(value: T, accelerator: Accelerator | None) -> list[T]:
    """``value`` of every process, in their order, on all of them."""
    if accelerator is None or accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


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


def run_script(
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[..., Any],
) -> None:
    """The whole of a script for ``accelerate launch``: parse, run on this process's device, show on the main one.

    Args:
        description: for ``--help``.
        add_arguments: adds the options, ``device`` among them.
        run: takes the arguments, and ``device``, ``say`` and ``accelerator`` by keyword.
    """
    from accelerate import Accelerator

    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    accelerator = Accelerator(cpu=args.device == "cpu")
    if args.device not in ("", accelerator.device.type):
        parser.error(f"accelerate runs this on {accelerator.device}; choose GPUs by `accelerate launch --gpu_ids`")
    try:
        run(args, device=accelerator.device, say=accelerator.print, accelerator=accelerator)
    except (VistokError, OSError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
    finally:
        accelerator.end_training()
