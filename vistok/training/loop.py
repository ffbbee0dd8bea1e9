"""The training loop: accelerate runs it, tasks fill it, checkpoints make it exact to resume.

Every draw of step s comes from generators seeded by (seed, s, micro batch), and the order of data
is a function of (seed, s); so a checkpoint needs no generator's state, a resumed run equals a
straight one to the last bit on a CPU, and the number of processes does not change the draws.
"""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from vistok.config import to_dict
from vistok.data import StatelessBatchSampler
from vistok.errors import ConfigError
from vistok.report.grid import save_image
from vistok.seeds import stable_seed
from vistok.training.checkpoint import (
    load_checkpoint,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from vistok.training.config import TrainConfig
from vistok.training.ema import Ema
from vistok.training.guard import check_finite
from vistok.training.log import RunLog, save_run_config
from vistok.training.optimizer import build_optimizer, clip_gradients
from vistok.training.schedules import learning_rate
from vistok.training.task import Task

logger = logging.getLogger(__name__)

# What may differ between a run and its resumption without making it another run.
_FREE_KEYS = frozenset(
    {
        "steps",
        "output_dir",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "preview_every",
        "eval_every",
        "trackers",
        "init_from",
    }
)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        step: optimizer steps done.
        folder: of the run; ``final`` in it holds the exported model.
        metrics: the last ones logged.
        finished: False if it was asked to stop early (it resumes where it stopped).
    """

    step: int
    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    finished: bool = True


def dry_run_config(config: TrainConfig, folder: str | Path) -> TrainConfig:
    """Two steps of the same recipe on random pictures, with random helping networks, offline."""
    loss = {**config.loss, "pretrained": False}
    if loss.get("adversarial_weight"):
        loss["adversarial_start"] = 1  # so that both kinds of step are tried
    return replace(
        config,
        steps=2,
        batch_size=2 * config.gradient_accumulation,
        data=replace(config.data, train="random:16", val="random:8", num_workers=0),
        loss=loss,
        mixed_precision="no",
        compile=False,
        init_from="",
        trackers=(),
        output_dir=str(folder),
        checkpoint_every=2,
        log_every=1,
        preview_every=2,
        eval_every=0,
    )


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
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_dir=str(self.folder),
            cpu=cpu,
            # Buffers (code usage, running averages) are computed from all processes' data, so they agree.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device = self.accelerator.device
        self.step = 0
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._prepare_modules()
        self._resume()
        if self.accelerator.is_main_process:
            save_run_config(config, self.folder)
        self.log = RunLog(self.accelerator, config, self.folder, self.step)
        self._stop = False

    def _prepare_modules(self) -> None:
        config, task = self.config, self.task
        for module in (*task.frozen.values(), *task.extra.values()):
            module.to(self.device)
        for module in task.frozen.values():
            module.requires_grad_(False).eval()
        self.averages: dict[str, Ema] = {}
        self.optimizers: dict[str, Any] = {}
        self.schedulers: dict[str, LambdaLR] = {}
        for name, module in task.modules.items():
            module.to(self.device).train()
            if config.gradient_checkpointing and hasattr(module, "set_gradient_checkpointing"):
                module.set_gradient_checkpointing(True)
            # Before accelerate prepares the module: it rebinds ``forward``, and a copy would call the original.
            if config.ema.enabled and name in task.averaged:
                self.averages[name] = Ema(module, decay=config.ema.decay)
            optimizer = build_optimizer(module, task.optimizer_config(name))
            self.schedulers[name] = self._scheduler(name, optimizer)
            forward = torch.compile(module) if config.compile else module
            task.wrapped[name], self.optimizers[name] = self.accelerator.prepare(forward, optimizer)

    def _scheduler(self, name: str, optimizer: torch.optim.Optimizer) -> LambdaLR:
        schedule, lr = self.config.schedule, self.task.optimizer_config(name).lr
        total = self.task.schedule_steps(name)

        def factor(step: int) -> float:
            return learning_rate(step, schedule.kind, lr, schedule.end_lr, schedule.warmup_steps, total) / lr

        return LambdaLR(optimizer, factor)

    # The loop.

    def train(self) -> RunResult:
        """All steps that are left, then the export."""
        config = self.config
        if self.step >= config.steps:
            logger.warning("%s has done its %d steps already", self.folder, config.steps)
        metrics: dict[str, float] = {}
        with self._interruptible(), self.log.progress(self.step):
            batches = iter(self._loader())
            while self.step < config.steps and not self._stop:
                micros = [self._to_device(next(batches)) for _ in range(config.gradient_accumulation)]
                terms = self.optimizer_step(micros)
                self.step += 1
                rates = {f"lr/{name}": scheduler.get_last_lr()[0] for name, scheduler in self.schedulers.items()}
                ids, size = self.task.codebook_ids(), self.task.codebook_size
                metrics = self.log.step(self.step, terms, rates, ids, size) or metrics
                self._periodic(micros[0])
        finished = self.step >= config.steps
        if finished and self.accelerator.is_main_process:
            self.task.export(self.folder / "final", self._best_modules())
        self.accelerator.wait_for_everyone()
        self.log.close()
        return RunResult(self.step, self.folder, metrics, finished)

    def optimizer_step(self, micros: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One optimizer step of every module of this step's phases, over all micro batches.

        A phase is finished before the next begins, so that each sees one loss scale under fp16.
        """
        terms: dict[str, Tensor] = {}
        for phase in self.task.phases(self.step):
            for number, batch in enumerate(micros):
                for name, value in self._backward(phase, batch, number, len(micros)).items():
                    terms[name] = terms.get(name, torch.zeros((), device=self.device)) + value / len(micros)
            terms[f"grad_norm_{phase}"] = self._update(phase, micros[0])
        return terms

    def _backward(self, phase: str, batch: dict[str, Any], number: int, count: int) -> dict[str, Tensor]:
        seed = stable_seed(self.config.seed, phase, self.step, number)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        module = self.task.wrapped[phase]
        with nullcontext() if number == count - 1 else self.accelerator.no_sync(module):
            loss, terms = self.task.loss(phase, batch, self.step, generator)
            terms = {**terms, "total" if phase == "model" else f"total_{phase}": loss}
            check_finite(terms, phase, self.step, batch, self.folder)
            self.accelerator.backward(loss / count)
        return {name: value.detach().float().mean() for name, value in terms.items()}

    def _update(self, phase: str, batch: dict[str, Any]) -> Tensor:
        """Clip, step, advance the learning rate and the average; the gradient's norm."""
        optimizer, module = self.optimizers[phase], self.task.modules[phase]
        self.accelerator.unscale_gradients(optimizer)
        trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = clip_gradients(trained, self.task.optimizer_config(phase).max_grad_norm)
        if self.config.mixed_precision != "fp16":  # there, the loss scale finds its way by such steps
            check_finite({"gradient norm": norm}, phase, self.step, batch, self.folder)
        optimizer.step()
        skipped = optimizer.step_was_skipped
        optimizer.zero_grad(set_to_none=True)
        if not skipped:
            self.schedulers[phase].step()
        if phase in self.averages:
            self.averages[phase].update(module, step=self.step + 1)
        return norm.detach()

    def _loader(self) -> DataLoader:
        config, accelerator = self.config, self.accelerator
        dataset = self.task.dataset(train=True)
        sampler = StatelessBatchSampler(
            len(dataset),
            config.batch_size,
            seed=config.seed,
            start_step=self.step,
            num_steps=config.steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            micro_batches=config.gradient_accumulation,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.task.collate,
            num_workers=config.data.num_workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=config.data.num_workers > 0,
        )

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        move = {"device": self.device, "non_blocking": True}
        return {key: value.to(**move) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _periodic(self, batch: dict[str, Any]) -> None:
        """Checkpoints, previews and evaluations when they are due."""
        config, step = self.config, self.step
        last = step >= config.steps or self._stop
        main = self.accelerator.is_main_process
        if last or step % config.checkpoint_every == 0:
            self.save()
        if main and config.preview_every and (step == 1 or last or step % config.preview_every == 0):
            picture = self.task.preview(batch, self._best_modules())
            if picture is not None:
                (self.folder / "previews").mkdir(exist_ok=True)
                save_image(picture, self.folder / "previews" / f"step_{step:08d}.png")
        if main and config.eval_every and (last or step % config.eval_every == 0):
            results = self.task.evaluate(self._best_modules())
            self.log.write(step, {f"eval/{name}": value for name, value in results.items()})

    def _best_modules(self) -> dict[str, nn.Module]:
        """The averaged modules in evaluation mode, or copies where no average is kept."""
        return {
            name: (self.averages[name].module if name in self.averages else self._snapshot(name)).eval()
            for name in self.task.averaged
        }

    def _snapshot(self, name: str) -> nn.Module:
        """A module with the present weights, built from the configuration of the prepared one."""
        module = self.task.modules[name]
        copy = type(module)(module.config).to(self.device)
        copy.load_state_dict(module.state_dict())
        return copy

    # Interruption and checkpoints.

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step, write a checkpoint and end the run; a second one is immediate."""

        def ask(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            logger.warning("%s: stopping after this step; run the same command to resume", signal.Signals(number).name)

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs us handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write a checkpoint of everything (on the main process)."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        tensors: dict[str, Tensor] = {}
        rest: dict[str, Any] = {"step": self.step, "config": to_dict(self.config), "optimizers": {}, "schedulers": {}}
        for name, part in self._saved_modules().items():
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            values, rest["optimizers"][name] = optimizer_tensors(optimizer, f"optimizer.{name}")
            tensors |= values
            rest["schedulers"][name] = {"last_epoch": self.schedulers[name].last_epoch}
        if self.accelerator.scaler is not None:
            rest["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(self.folder / "checkpoints", self.step, tensors, rest, keep=self.config.keep_checkpoints)

    def _saved_modules(self) -> dict[str, nn.Module]:
        task = self.task
        parts: dict[str, nn.Module] = {f"module.{name}": module for name, module in task.modules.items()}
        parts |= {f"average.{name}": average.module for name, average in self.averages.items()}
        return parts | {f"extra.{name}": module for name, module in task.extra.items()}

    def _resume(self) -> None:
        folder = newest_checkpoint(self.folder / "checkpoints")
        if folder is None:
            return
        tensors, rest = load_checkpoint(folder, device=self.device)
        changed = changed_keys(rest["config"], to_dict(self.config))
        if changed:
            raise ConfigError(
                f"{folder} belongs to another configuration: {', '.join(changed)} changed. "
                "Give the run another name, or start it anew (--fresh)"
            )
        for name, part in self._saved_modules().items():
            prefix = f"{name}."
            part.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, f"optimizer.{name}", tensors, rest["optimizers"][name])
            done = rest["schedulers"][name]["last_epoch"]
            scheduler = self.schedulers[name]
            scheduler.last_epoch = done
            for group, base, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(done)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
        if self.accelerator.scaler is not None and "scaler" in rest:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        self.step = rest["step"]
        logger.info("resuming from %s", folder)


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that differ, apart from those that do not make it another run."""
    out = []
    for key in sorted(before.keys() | now.keys()):
        dotted = f"{prefix}{key}"
        a, b = before.get(key), now.get(key)
        if dotted in _FREE_KEYS or dotted == "data.num_workers" or a == b:
            continue
        out += changed_keys(a, b, f"{dotted}.") if isinstance(a, dict) and isinstance(b, dict) else [dotted]
    return out


def train(config: TrainConfig, *, task: Task | None = None, resume: bool = True, dry_run: bool = False) -> RunResult:
    """Run a configuration; see ``vistok.train``.

    Args:
        config: of the run.
        task: what to train; None builds the configuration's own.
        resume: go on from the newest checkpoint where there is one.
        dry_run: two small steps on random pictures on the CPU, in a temporary folder.
    """
    from vistok.training import build_task

    if not dry_run:
        return TrainingRun(config, task or build_task(config), resume=resume).train()
    with tempfile.TemporaryDirectory(prefix="vistok-dry-run-") as folder:
        small = dry_run_config(config, folder)
        return TrainingRun(small, task or build_task(small), resume=False, cpu=True).train()
