"""Training: ``train`` runs a configuration; tasks say what is trained, the loop how."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.config import load_config
from vistok.registry import get_card, model_class
from vistok.training.config import TrainConfig

if TYPE_CHECKING:
    from vistok.training.loop import RunResult
    from vistok.training.task import Task

__all__ = ["TrainConfig", "build_task", "train"]


def build_task(config: TrainConfig) -> Task:
    """The task of a configuration, with fresh modules (or those of ``init_from``)."""
    if config.task == "tokenizer":
        name = config.model.get("name")
        family = get_card(name).family if name else config.model["family"]
        if getattr(model_class(family), "adaptive", False) is True:
            from vistok.training.adaptive_task import AdaptiveTask

            return AdaptiveTask(config)
        from vistok.training.tokenizer_task import TokenizerTask

        return TokenizerTask(config)
    from vistok.training.generator_task import GeneratorTask

    return GeneratorTask(config)


def train(
    config: TrainConfig | str | Path, overrides: Iterable[str] = (), *, resume: bool = True, dry_run: bool = False
) -> RunResult:
    """Run a training configuration, from its newest checkpoint where there is one.

    Args:
        config: a ``TrainConfig`` or a YAML file.
        overrides: ``a.b=value`` strings on top of a file.
        resume: False starts afresh and removes the run's old checkpoints.
        dry_run: two small steps on random pictures, offline, in a temporary folder.
    Returns:
        the last step, the run's folder, and the last metrics.
    """
    from vistok.training import loop

    if not isinstance(config, TrainConfig):
        config = load_config(TrainConfig, config, overrides)
    elif list(overrides):
        raise TypeError("overrides go with a file; change a TrainConfig with dataclasses.replace")
    return loop.train(config, resume=resume, dry_run=dry_run)


def __getattr__(name: str) -> Any:
    if name == "RunResult":
        from vistok.training.loop import RunResult

        return RunResult
    raise AttributeError(name)
