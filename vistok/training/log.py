"""What a run tells: a progress bar, ``metrics.jsonl``, accelerate's trackers, preview pictures."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vistok.config import save_yaml, to_dict
from vistok.metrics.codebook import CodebookUsage
from vistok.training.config import TrainConfig

logger = logging.getLogger(__name__)

_MOST_CODES = 1 << 24  # larger codebooks are not counted


class RunLog:
    """Averages numbers between lines and writes them, on the main process.

    A line holds ``train/NAME`` (means over the steps since the last line, all micro batches and
    processes), ``lr/MODULE``, ``codebook/NAME`` (of the ids since the last line) and
    ``images_per_second`` (of the steps alone, without previews, evaluations and checkpoints).
    Evaluations have lines of their own. What is averaged is not saved: a line is due at every
    checkpoint.

    Args:
        accelerator: of the run.
        config: of the run.
        folder: of the run.
        step: where it begins; later lines of an interrupted run are dropped.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, folder: Path, step: int) -> None:
        self.accelerator, self.config, self.path = accelerator, config, folder / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self._bar: Any = None
        self._clear()
        if self.main:
            self._drop_after(step)
        if config.trackers:
            # A resumed run's events take the place of those that came after the checkpoint.
            options = {"tensorboard": {"purge_step": step + 1}} if step else {}
            accelerator.init_trackers(config.name, config=flatten(to_dict(config)), init_kwargs=options)

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = {}  # name -> [sum, number of steps that had it]
        self._usage: CodebookUsage | None = None
        self._seconds, self._steps = 0.0, 0

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # the line that was being written when the run was killed
                continue
        write_text(self.path, "".join(kept))

    @contextmanager
    def progress(self, step: int) -> Iterator[None]:
        """A bar on the main process's terminal; where there is none, lines go to the logger."""
        with tqdm(
            total=self.config.steps,
            initial=step,
            desc=self.config.name,
            unit="step",
            disable=None if self.main else True,
            dynamic_ncols=True,
        ) as self._bar:
            yield

    def add_ids(self, ids: Tensor | None, codebook_size: int) -> None:
        """Count a micro batch's ids, in [0, codebook_size); None or a size of 0 for none."""
        if ids is not None and 0 < codebook_size <= _MOST_CODES:
            self._usage = self._usage or CodebookUsage(codebook_size)
            self._usage.update(ids)

    def add(self, terms: dict[str, float], *, seconds: float) -> None:
        """Take in one step's numbers, and how long it took."""
        for name, value in terms.items():
            pair = self._sums.setdefault(name, [0.0, 0])
            pair[0] += value
            pair[1] += 1
        self._seconds += seconds
        self._steps += 1
        self._bar.update(1)

    def line(self, step: int, rates: dict[str, float]) -> dict[str, float]:
        """Write the averages since the last line; called on all processes together.

        Args:
            step: steps done.
            rates: numbers of the moment (learning rates).
        Returns:
            the line.
        """
        names = sorted(self._sums)
        means = torch.tensor([self._sums[name][0] / self._sums[name][1] for name in names])
        means = self.accelerator.reduce(means.to(self.accelerator.device), reduction="mean").tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, means, strict=True)} | rates
        if self._usage is not None:
            self._usage.all_reduce(self.accelerator)
            metrics |= {f"codebook/{name}": float(value) for name, value in self._usage.compute().items()}
        speed = self._steps * self.config.batch_size / max(self._seconds, 1e-9)
        metrics["images_per_second"] = speed
        self._clear()
        self.write(step, metrics)
        loss = metrics.get("train/total", math.nan)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
        if self.main and self._bar.disable:
            left = timedelta(seconds=round((self.config.steps - step) * self.config.batch_size / speed))
            logger.info("step %d/%d: loss %.4f, %.1f images/s, %s left", step, self.config.steps, loss, speed, left)
        return metrics

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line of the history, and the trackers."""
        if self.main:
            # JSON has no infinity and no nan.
            known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **known}) + "\n")
        self.accelerator.log(metrics, step=step)


def save_run_config(config: TrainConfig, folder: Path) -> None:
    """The resolved configuration as ``config.yaml``."""
    temporary = folder / ".config.yaml.tmp"
    save_yaml(config, temporary)
    os.replace(temporary, folder / "config.yaml")


def read_history(run: str | Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged number of a run."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [(line["step"], line[key]) for line in lines if key in line]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones, and values as trackers take them: numbers and texts."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return out
