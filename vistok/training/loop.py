"""The training loop: accelerate runs it, tasks fill it, checkpoints make it exact to resume.

Every draw of step s comes from generators seeded by (seed, phase, s, micro batch), and the order
of data is a function of (seed, s); so a checkpoint needs no generator's state, a resumed run equals
a straight one to the last bit on a CPU, and the number of processes does not change the draws.

One process or several (``accelerate launch``; DistributedDataParallel): the batch is the same.
Under fp16 every module has a loss scale of its own: with one for all, the scale that one
optimizer's step adapts would no longer be the scale of the gradients that wait for the next.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vistok.config import to_dict
from vistok.data import StatelessBatchSampler
from vistok.errors import CheckpointError, ConfigError, VistokError
from vistok.report.grid import save_image
from vistok.seeds import stable_seed
from vistok.training.checkpoint import (
    checkpoint_folder,
    checkpoint_step,
    load_checkpoint,
    load_optimizer_tensors,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from vistok.training.config import OptimizerConfig, ScheduleConfig, TrainConfig, changed_keys, dry_run_config
from vistok.training.ema import Ema, best_modules
from vistok.training.guard import FiniteGuard, Stop, Term, make_accelerator
from vistok.training.log import RunLog, save_run_config
from vistok.training.optimizer import build_optimizer
from vistok.training.schedules import build_scheduler
from vistok.training.task import Task, decodes_in_steps, training_bytes

logger = logging.getLogger(__name__)

_PREVIEW_ITEMS = 8
_FORMAT = 2  # of checkpoints


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        step: optimizer steps done.
        folder: of the run; ``final`` in it holds the exported model.
        metrics: the last ones logged, and those of the last evaluation.
        finished: False if it was asked to stop early (it resumes where it stopped).
    """

    step: int
    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    finished: bool = True


def train(
    config: TrainConfig,
    *,
    task: Task | Callable[[TrainConfig], Task] | None = None,
    resume: bool = True,
    dry_run: bool = False,
) -> RunResult:
    """Run a configuration; see ``vistok.train``.

    Args:
        config: of the run.
        task: what to train, or what makes it of a configuration (as a ``Task`` class does); None for
            ``build_task``.
        resume: go on from the newest checkpoint where there is one; False removes the run's checkpoints.
        dry_run: two small steps on random pictures on the CPU, in a temporary folder.
    Raises:
        ConfigError: the configuration cannot be run here, or its folder holds another run.
        NonFiniteError: a loss or gradient was not finite.
    """
    if task is None:
        from vistok.training import build_task as task
    if not dry_run:
        return TrainingRun(config, _make_task(task, config), resume=resume).train()
    if isinstance(task, Task):
        raise TypeError(
            "a dry run changes the configuration: pass the task's class, not a task of another configuration"
        )
    with tempfile.TemporaryDirectory(prefix="vistok-dry-run-") as folder:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        small = dry_run_config(config, folder, processes=processes, samples=decodes_in_steps(config.model))
        if config.task == "tokenizer":
            _check_memory(small)
        run = TrainingRun(small, _make_task(task, small), resume=False, cpu=True)
        result = run.train()
        made = ", ".join(sorted(path.name for path in result.folder.glob("*")))
    if run.main:
        logger.info(
            "dry run of %s: %d steps of %d images on the CPU, last loss %.4g; made and removed again: %s",
            config.name, result.step, small.batch_size, result.metrics["train/total"], made,
        )  # fmt: skip
        untried = [f"data.train={config.data.train}"] if small.data.train != config.data.train else []
        untried += [f"init_from={config.init_from}"] if config.init_from else []
        untried += [f"trackers={','.join(config.trackers)}"] if config.trackers else []
        untried += [f"mixed_precision={config.mixed_precision}"] if config.mixed_precision != "no" else []
        if untried:
            logger.info("a dry run does not try %s", ", ".join(untried))
    return result


def _check_memory(config: TrainConfig) -> None:
    """Raise where a dry run would not fit: a system that runs out of memory kills without a word."""
    try:
        needed = training_bytes(config.model, average=config.ema.enabled)
    except VistokError:
        return  # making the model says what is wrong; a task may bring a model of its own
    free = psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"a dry run of {config.name} takes more than {needed / 1e9:.0f} GB of memory (weights, gradients, AdamW and "
            f"average in fp32), and {free / 1e9:.0f} GB are free; try the recipe with a smaller model, as in "
            "model.decoder.depth=2 or model.decoder=small"
        )


def _make_task(task: Task | Callable[[TrainConfig], Task], config: TrainConfig) -> Task:
    if isinstance(task, Task):
        return task
    torch.manual_seed(config.seed)
    return task(config)


class Update:
    """How one module is updated: its optimizer, learning rate and loss scale.

    Args:
        module: not wrapped, on its device.
        config: of the optimizer.
        schedule: of the learning rate.
        total_steps: the schedule's horizon.
        scaler: under fp16; else a disabled one.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        total_steps: int,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.module, self.config, self.schedule, self.total_steps = module, config, schedule, total_steps
        self.scaler = scaler
        self.optimizer = build_optimizer(module, config)
        self._schedule_from(0)

    def _schedule_from(self, done: int) -> None:
        self.scheduler = build_scheduler(
            self.optimizer, self.schedule, lr=self.config.lr, total_steps=self.total_steps, done=done
        )

    @property
    def count(self) -> int:
        """Steps taken, without those that a loss scale skipped."""
        return self.scheduler.last_epoch

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, accelerator: Accelerator) -> tuple[Tensor, bool]:
        """Clip, step, advance the learning rate, and drop the gradients.

        Returns:
            the gradient's norm before clipping, and whether the loss scale skipped the step.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm or float("inf"))
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        if not skipped:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach(), skipped

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """For a checkpoint: tensors, and the rest."""
        return optimizer_tensors(self.optimizer, self.module), {"count": self.count, "scaler": self.scaler.state_dict()}

    def load(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """The way back of ``state``."""
        load_optimizer_tensors(self.optimizer, self.module, tensors)
        self._schedule_from(rest["count"])
        if rest["scaler"]:
            self.scaler.load_state_dict(rest["scaler"])


class TrainingRun:
    """One run of a task: its modules prepared, its newest checkpoint loaded.

    Args:
        config: of the run.
        task: what is trained.
        resume: go on from the newest checkpoint; False removes the run's checkpoints.
        cpu: stay on the CPU.
    Raises:
        ConfigError: the run's folder holds a checkpoint of another configuration.
    """

    def __init__(self, config: TrainConfig, task: Task, *, resume: bool = True, cpu: bool = False) -> None:
        self.config, self.task = config, task
        self.folder = Path(config.output_dir) / config.name
        self.step, self._saved_step = 0, -1
        self.accelerator = make_accelerator(
            config, self.folder, cpu=cpu, find_unused_parameters=task.find_unused_parameters
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        checkpoint = self._find_checkpoint(resume)
        saved = self._read_checkpoint(checkpoint) if checkpoint else None
        self._prepare_modules(fresh=saved is None)
        if saved is not None:
            self._load(*saved)
        if self.main:
            if saved is not None:
                logger.info("resuming %s after step %d", config.name, self.step)
            save_run_config(config, self.folder)
        self.dataset = task.dataset(train=True)
        self.log = RunLog(self.accelerator, config, self.folder, self.step)
        self.guard = FiniteGuard(self.folder, self.accelerator.process_index)
        self.stop = Stop()
        self.metrics: dict[str, float] = {}

    def _prepare_modules(self, *, fresh: bool) -> None:
        config, task = self.config, self.task
        for module in (*task.modules.values(), *task.frozen.values(), *task.extra.values()):
            module.to(self.device)
        for module in task.modules.values():
            module.train()  # loaded and created models come in evaluation mode
        for module in task.frozen.values():
            module.requires_grad_(False).eval()
        if fresh:
            task.prepare(device=self.device)
        self.averages: dict[str, Ema] = {}
        self.updates: dict[str, Update] = {}
        fp16 = config.mixed_precision == "fp16"
        for name, module in task.modules.items():
            if config.gradient_checkpointing and hasattr(module, "set_gradient_checkpointing"):
                module.set_gradient_checkpointing(True)
            # Before accelerate prepares the module: it rebinds ``forward``, and a copy would call the original.
            if config.ema.enabled and name in task.averaged:
                self.averages[name] = Ema(module, decay=config.ema.decay)
            self.updates[name] = Update(
                module,
                task.optimizer_config(name),
                config.schedule,
                total_steps=task.schedule_steps(name),
                scaler=torch.amp.GradScaler(self.device.type, enabled=fp16),
            )
            task.wrapped[name] = self.accelerator.prepare(module)
            if config.compile:
                task.wrapped[name].compile()  # in place: the state dict keeps its names

    # The loop.

    def train(self) -> RunResult:
        """All steps that are left, then the export."""
        config = self.config
        if self.main and self.step >= config.steps:
            logger.warning("%s has done its %d steps already; raise `steps` to go on", self.folder, self.step)
        with self.stop.listening(), self.log.progress(self.step):
            batches = iter(self._loader())
            stopping = False
            while self.step < config.steps and not stopping:
                started = time.perf_counter()
                rates = {f"lr/{name}": update.rate for name, update in self.updates.items()}
                terms = self.optimizer_step([next(batches) for _ in range(config.gradient_accumulation)])
                self.step += 1
                self.log.add(terms, seconds=time.perf_counter() - started)
                stopping = self._anyone_stops()
                self._report(rates, stopping)
        finished = self.step >= config.steps
        if finished:
            self._export()
        elif self.main:
            logger.warning(
                "%s: stopped %s after step %d of %d; the same command resumes it",
                self.stop.signal or "another process", config.name, self.step, config.steps,
            )  # fmt: skip
        # Not ``end_training``, which also destroys the process group: a group made anew for the process's
        # next run meets the old one's addresses in the launcher's store, and may wait for them for ever.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return RunResult(self.step, self.folder, self.metrics, finished)

    def optimizer_step(self, host_batches: list[dict[str, Any]]) -> dict[str, float]:
        """One step of every module of this step's phases, over all micro batches.

        Args:
            host_batches: one a micro batch, on any device.
        Returns:
            the step's numbers by name, each a mean over the micro batches.
        Raises:
            NonFiniteError: one is not finite.
        """
        phases = self.task.phases(self.step)
        micros, found = [], []
        for number, host_batch in enumerate(host_batches):
            micros.append(send_to_device(host_batch, self.device, non_blocking=True))
            for phase in phases:
                terms = self._backward(phase, micros[-1], number, last=number == len(host_batches) - 1)
                found += [(phase, number, name, value) for name, value in terms.items()]
            self.log.add_ids(self.task.codebook_ids(), self.task.codebook_size)
        skipped = {}
        for phase in phases:
            norm, skipped[phase] = self.updates[phase].step(self.accelerator)
            found.append((phase, None, f"grad_norm_{phase}", norm))
            if phase in self.averages and not skipped[phase]:
                self.averages[phase].update(self.task.modules[phase], step=self.updates[phase].count)
        # One transfer a step: reading each number by itself would wait for the device as often.
        values = torch.stack([value.to(self.device) for *_, value in found]).tolist()
        terms = [Term(*head, value) for (*head, _), value in zip(found, values, strict=True)]
        self.guard.check(self.step, terms, skipped, micros)
        groups: dict[str, list[float]] = {}
        for term in terms:
            if not (term.micro is None and skipped[term.phase]):
                groups.setdefault(term.name, []).append(term.value)
        return {name: sum(group) / len(group) for name, group in groups.items()}

    def _backward(self, phase: str, batch: dict[str, Any], number: int, *, last: bool) -> dict[str, Tensor]:
        """The loss of a phase on a micro batch, and its gradients; its terms."""
        seed = stable_seed(self.config.seed, phase, self.step, number)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        # Gradients are averaged over processes once, with the last micro batch.
        wait = nullcontext() if last else self.accelerator.no_sync(self.task.wrapped[phase])
        with wait, self._only(phase):
            loss, terms = self.task.loss(phase, batch, self.step, generator)
            self.accelerator.backward(self.updates[phase].scaler.scale(loss / self.config.gradient_accumulation))
        # The first module's total is "the" loss.
        total = "total" if phase == next(iter(self.task.modules)) else f"total_{phase}"
        return {name: value.detach().float().mean() for name, value in (*terms.items(), (total, loss))}

    @contextmanager
    def _only(self, phase: str) -> Iterator[None]:
        """Parameters of other modules take no gradient, though a loss may pass through them."""
        modules = [module for name, module in self.task.modules.items() if name != phase]
        others = [p for module in modules for p in module.parameters() if p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _loader(self) -> DataLoader:
        config, accelerator = self.config, self.accelerator
        sampler = StatelessBatchSampler(
            len(self.dataset),
            config.batch_size,
            seed=config.seed,
            start_step=self.step,
            num_steps=config.steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            micro_batches=config.gradient_accumulation,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=self.task.collate,
            num_workers=config.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _anyone_stops(self) -> bool:
        """Whether a signal reached any process: signals come at different steps, and all must stop after the same."""
        asked = torch.tensor([float(bool(self.stop.signal))], device=self.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())

    def _report(self, rates: dict[str, float], stopping: bool) -> None:
        """Log lines, previews, evaluations and checkpoints, when they are due; the checkpoint comes last.

        A run that was asked to stop writes its checkpoint at once, without picture or evaluation.
        """
        config, step = self.config, self.step
        last = step >= config.steps

        def due(every: int) -> bool:
            return every > 0 and (last or step % every == 0)

        save = last or stopping or due(config.checkpoint_every)
        # The first line shows a collapsed codebook at once; that of a checkpoint leaves nothing unwritten in it.
        if save or due(config.log_every) or (config.log_every and step == 1):
            self.metrics |= self.log.line(step, rates)
        # The first picture shows what the run began with.
        if (due(config.preview_every) or (config.preview_every and step == 1)) and self.main and not stopping:
            self._preview()
        if due(config.eval_every) and not stopping:
            with self._best_modules() as modules:
                results = {f"eval/{name}": value for name, value in self.task.evaluate(modules).items()}
            self.metrics |= results
            self.log.write(step, results)
        if save:
            self.save()

    def _preview(self) -> None:
        count = min(_PREVIEW_ITEMS, len(self.dataset))
        items = [self.dataset[(index * len(self.dataset) // count, 0)] for index in range(count)]
        with self._best_modules() as modules:
            picture = self.task.preview(send_to_device(self.task.collate(items), self.device), modules)
        if picture is not None:
            folder = self.folder / "previews"
            folder.mkdir(exist_ok=True)
            save_image(picture, folder / f"step_{self.step:08d}.png")

    def _best_modules(self) -> AbstractContextManager[dict[str, nn.Module]]:
        return best_modules({name: self.task.modules[name] for name in self.task.averaged}, self.averages)

    def _export(self) -> None:
        """``final``, in one piece."""
        if self.main:
            final, temporary = self.folder / "final", self.folder / ".final.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            with self._best_modules() as modules:
                self.task.export(temporary, modules)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        self.accelerator.wait_for_everyone()

    # Checkpoints.

    def save(self) -> None:
        """Write a checkpoint of everything (on the main process)."""
        if self.main and self.step != self._saved_step:
            tensors: dict[str, Tensor] = {}
            rest: dict[str, Any] = {"format": _FORMAT, "step": self.step, "config": to_dict(self.config), "updates": {}}
            for name, part in self._saved_modules().items():
                tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
            for name, update in self.updates.items():
                values, rest["updates"][name] = update.state()
                tensors |= {f"optimizer/{name}/{key}": value for key, value in values.items()}
            save_checkpoint(self.folder / "checkpoints", self.step, tensors, rest, keep=self.config.keep_checkpoints)
        self._saved_step = self.step
        self.accelerator.wait_for_everyone()

    def _saved_modules(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {f"module/{name}": module for name, module in self.task.modules.items()}
        parts |= {f"average/{name}": average.module for name, average in self.averages.items()}
        return parts | {f"extra/{name}": module for name, module in self.task.extra.items()}

    def _find_checkpoint(self, resume: bool) -> Path | None:
        """The checkpoint to go on from, as the main process sees it."""
        root = self.folder / "checkpoints"
        step = -1
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume and root.exists():
                logger.warning("starting afresh: the old checkpoints in %s are removed", root)
                shutil.rmtree(root)
            newest = newest_checkpoint(root)
            step = checkpoint_step(newest) if newest is not None else -1
        step = int(broadcast(torch.tensor([step], device=self.device)).item())
        return checkpoint_folder(root, step) if step >= 0 else None

    def _read_checkpoint(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, rest = load_checkpoint(folder)
        if rest.get("format") != _FORMAT:
            raise CheckpointError(
                f"{folder} is of another version of vistok (format {rest.get('format')}, and this one reads {_FORMAT}); "
                "go on with that version, give the run another `name`, or start anew (--no-resume)"
            )
        changed = changed_keys(rest["config"], self.config)
        if changed:
            raise ConfigError(
                f"{folder} belongs to another configuration: {', '.join(changed)}. Undo these changes, give the "
                "run another `name`, or start anew (--no-resume), which removes the old run"
            )
        return tensors, rest

    def _load(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        for name, module in self._saved_modules().items():
            try:
                module.load_state_dict(part(f"{name}/"))
            except RuntimeError as error:
                raise CheckpointError(f"the checkpoint of step {rest['step']} does not fit {name}: {error}") from error
        for name, update in self.updates.items():
            update.load(part(f"optimizer/{name}/"), rest["updates"][name])
        self.step = self._saved_step = rest["step"]
