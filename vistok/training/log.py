"""What a run tells: a progress bar, ``metrics.jsonl``, accelerate's trackers, preview pictures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from vistok.config import to_dict
from vistok.metrics.codebook import CodebookUsage
from vistok.training.config import TrainConfig


class RunLog:
    """Averages terms between log lines and writes them, on the main process.

    Args:
        accelerator: of the run.
        config: of the run.
        folder: of the run.
        step: where it begins; later lines of an interrupted run are dropped.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, folder: Path, step: int) -> None:
        self.accelerator, self.config, self.path = accelerator, config, folder / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._usage: CodebookUsage | None = None
        self._since = (time.perf_counter(), step)
        self._bar: Any = None
        if self.main:
            self._drop_after(step)
        if config.trackers:
            accelerator.init_trackers(config.name)

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the line that was being written when the run was killed
                continue
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    @contextmanager
    def progress(self, step: int) -> Iterator[None]:
        """A bar with images/s and the time that is left."""
        self._since = (time.perf_counter(), step)
        with tqdm(
            total=self.config.steps, initial=step, desc=self.config.name, unit="step", disable=not self.main, dynamic_ncols=True
        ) as self._bar:
            yield

    def step(
        self, step: int, terms: dict[str, Tensor], rates: dict[str, float], ids: Tensor | None, codebook_size: int
    ) -> dict[str, float] | None:
        """Take in one step's terms; the averages, when it is time for a line."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._count += 1
        if ids is not None and codebook_size:
            self._usage = self._usage or CodebookUsage(codebook_size)
            self._usage.update(self.accelerator.gather(ids))
        self._bar.update(1)
        first = step == 1  # so that a collapsed codebook is seen at once
        if not (first or step % self.config.log_every == 0 or step == self.config.steps):
            return None
        return self._line(step, rates)

    def _line(self, step: int, rates: dict[str, float]) -> dict[str, float]:
        means = torch.stack([total.reshape(()) for total in self._sums.values()]) / self._count
        means = self.accelerator.reduce(means, reduction="mean").tolist()
        metrics = {f"train/{name}": value for name, value in zip(self._sums, means, strict=True)}
        metrics |= rates
        if self._usage is not None:
            metrics |= {f"codebook/{name}": float(value) for name, value in self._usage.compute().items()}
        now = time.perf_counter()
        images = (step - self._since[1]) * self.config.batch_size
        metrics["images_per_second"] = images / max(now - self._since[0], 1e-9)
        self._since = (now, step)
        self._sums, self._count, self._usage = {}, 0, None
        self.write(step, metrics)
        self._bar.set_postfix_str(f"loss {metrics['train/total']:.4f}, {metrics['images_per_second']:.0f} images/s")
        return metrics

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line of the history, and the trackers."""
        if self.main:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self.config.trackers:
            self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """End the trackers."""
        if self.config.trackers:
            self.accelerator.end_training()


def save_run_config(config: TrainConfig, folder: Path) -> None:
    """The resolved configuration, as YAML."""
    import yaml

    temporary = folder / "config.yaml.tmp"
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    os.replace(temporary, folder / "config.yaml")
