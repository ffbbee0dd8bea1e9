"""What a training run is: one frozen dataclass, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vistok.data.config import DataConfig
from vistok.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        lr: peak learning rate.
        betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        max_grad_norm: gradients are clipped to this total norm; 0 for no clipping.
        no_decay: ``fnmatch`` patterns of parameters without weight decay, besides those with one
            dimension; None for the model's own list.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    no_decay: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up from 0, then ``cosine`` down to ``end_lr``, or ``constant``."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    end_lr: float = 1e-5


@dataclass(frozen=True)
class EmaConfig:
    """Running average of the weights, which is what is evaluated and exported."""

    enabled: bool = True
    decay: float = 0.999


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: of the run; its folder is ``output_dir/name``.
        task: ``tokenizer`` or ``generator``.
        model: a registered ``name``, or a ``family``, and differences from its configuration.
        data: pictures (``tokenizer``) or pictures to be tokenized (``generator``).
        loss: the task's own terms and weights.
        optimizer, schedule, ema: of the model.
        discriminator: of the discriminator, where there is one; None for the model's settings.
        steps: optimizer steps.
        batch_size: images a step, over all processes and micro batches.
        gradient_accumulation: micro batches a step.
        seed: of weights, data order, augmentation and every draw.
        mixed_precision: ``no``, ``fp16`` or ``bf16``.
        freeze_encoder: train the decoding half alone (stage 2 of the two-stage recipe).
        gradient_checkpointing: recompute blocks in the backward pass.
        compile: run modules under ``torch.compile``.
        init_from: weights to start from: a name, hub id, folder or file; "" for fresh ones.
        output_dir: folder of runs.
        checkpoint_every, keep_checkpoints: steps between checkpoints, and how many stay.
        log_every, preview_every, eval_every: steps between log lines, preview pictures, evaluations; 0 for never.
        trackers: names that accelerate knows (``tensorboard``, ``wandb``, ...).
    """

    name: str
    steps: int
    batch_size: int
    data: DataConfig
    task: Literal["tokenizer", "generator"] = "tokenizer"
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator: OptimizerConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    gradient_accumulation: int = 1
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    freeze_encoder: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    init_from: str = ""
    output_dir: str = "runs"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 10
    preview_every: int = 500
    eval_every: int = 0
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "gradient_accumulation", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide into {self.gradient_accumulation} micro batches"
            )
        if not self.name or "/" in self.name:
            raise ConfigError(f"name is the run's folder below output_dir, without slashes; got {self.name!r}")
        if not ({"name", "family"} & self.model.keys()):
            raise ConfigError("model wants a registered `name` or a `family`")
