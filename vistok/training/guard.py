"""What keeps a run from harm: a machine that cannot run it, numbers that are none, signals."""

from __future__ import annotations

import atexit
import json
import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration
from safetensors.torch import save_file
from torch import Tensor

from vistok.errors import ConfigError, VistokError, nearest
from vistok.training.config import TrainConfig

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_MOST_SKIPPED = 20  # the fp16 loss scale starts at 2^16 and halves each time: it is 1/16 by then


def make_accelerator(
    config: TrainConfig, folder: Path, *, cpu: bool = False, find_unused_parameters: bool = False
) -> Accelerator:
    """accelerate's view of this machine, for a run.

    Raises:
        ConfigError: a tracker that is unknown or not installed, a precision that the device does not
            have, or a launcher's setting that shards models.
    """
    for name in config.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"trackers: unknown tracker {name!r}; {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in map(str, get_available_trackers()):
            raise ConfigError(f"trackers: {name} is not installed; pip install {name}, or leave it out")
    # A process may run several configurations, and accelerate keeps the first one's precision and device.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
            cpu=cpu,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    # Modules compute their buffers from all processes' data, so they agree; to broadcast
                    # them before every forward would spoil a backward that still needs them.
                    broadcast_buffers=False,
                    find_unused_parameters=find_unused_parameters,
                )
            ],
        )
    except ValueError as error:
        raise ConfigError(f"this machine cannot run the configuration: {error}") from error
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision: fp16 needs a GPU, and this run is on a CPU; use bf16 or no")
    if accelerator.distributed_type in _SHARDED:
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, and this loop replicates models: "
            "use `accelerate launch --multi_gpu`"
        )
    if torch.distributed.is_initialized():  # runs of one process share the group: it ends with the process
        atexit.unregister(_leave_process_group)
        atexit.register(_leave_process_group)
    accelerator.scaler = None  # every module has its own: see vistok.training.loop
    return accelerator


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class NonFiniteError(VistokError):
    """A loss or gradient is infinite or not a number; the message names it."""


class Term(NamedTuple):
    """One number of a step: a loss term, or a gradient's norm (``micro`` is None)."""

    phase: str
    micro: int | None
    name: str
    value: float


class FiniteGuard:
    """Ends a run whose numbers are no longer numbers, and keeps what is needed to see why.

    Under fp16 a gradient that overflows is no error: its step is skipped and the loss scale
    halved. So many in a row are.

    Args:
        folder: of the run.
        process: index of this process, which each save their own part of the batch.
    """

    def __init__(self, folder: Path, process: int = 0) -> None:
        self.folder, self.process = folder, process
        self._skipped: dict[str, int] = {}

    def check(
        self, step: int, terms: Iterable[Term], skipped: dict[str, bool], micros: Sequence[dict[str, Any]]
    ) -> None:
        """Raise if a number of the step is not finite, after saving the batch.

        Args:
            step: the step (0-based).
            terms: its numbers.
            skipped: for each phase, whether its loss scale made it skip the step.
            micros: the micro batches of the step.
        Raises:
            NonFiniteError: names the terms, the step and the folder.
        """
        for phase, skip in skipped.items():
            self._skipped[phase] = self._skipped.get(phase, 0) + 1 if skip else 0
        bad = [term for term in terms if not math.isfinite(term.value) and not self._is_overflow(term)]
        if not bad:
            return
        folder = self._save(step, bad, micros)
        names = sorted({f"{term.name} of the {term.phase}" for term in bad})
        raise NonFiniteError(
            f"step {step}: {', '.join(names)} is not finite; the batch is in {folder}. Look at it, lower "
            "optimizer.lr or raise schedule.warmup_steps, or take mixed_precision: bf16 instead of fp16. "
            "The run's last checkpoint is from before this step"
        )

    def _is_overflow(self, term: Term) -> bool:
        return term.micro is None and 0 < self._skipped.get(term.phase, 0) < _MOST_SKIPPED

    def _save(self, step: int, bad: list[Term], micros: Sequence[dict[str, Any]]) -> Path:
        folder = self.folder / f"nonfinite_step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        # A gradient's norm comes from all micro batches of the step.
        wanted = {term.micro for term in bad}
        report: dict[str, Any] = {"step": step, "terms": [[*term[:3], str(term.value)] for term in bad], "other": {}}
        for number, batch in enumerate(micros):
            if number not in wanted and None not in wanted:
                continue
            # safetensors refuses tensors that share memory: copies of their own.
            tensors = {k: v.detach().cpu().clone().contiguous() for k, v in batch.items() if isinstance(v, Tensor)}
            save_file(tensors, folder / f"process_{self.process}_micro_{number}.safetensors")
            report["other"][number] = {k: repr(v) for k, v in batch.items() if not isinstance(v, Tensor)}
        text = json.dumps(report, indent=1)
        (folder / f"process_{self.process}.json").write_text(text, encoding="utf-8")
        return folder


class Stop:
    """Whether SIGINT or SIGTERM asked the run to stop; a second one stops at once."""

    def __init__(self) -> None:
        self.signal = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over; outside the main thread, where that cannot be, leave them alone."""

        def ask(number: int, _frame: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number).name  # nothing more here: a handler may interrupt any line

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
