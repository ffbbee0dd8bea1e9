"""What a training run is: one frozen dataclass, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vistok.config import from_dict, to_dict
from vistok.data.config import DataConfig
from vistok.data.token_shards import PREFIX
from vistok.errors import ConfigError

# What may differ between a run and its resumption without making it another run.
_FREE_KEYS = frozenset(
    {
        "name",  # a folder may be moved and renamed
        "output_dir",
        "init_from",  # read once, by the first start
        "steps",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "preview_every",
        "eval_every",
        "trackers",
        # How the same numbers are computed:
        "gradient_accumulation",
        "gradient_checkpointing",
        "compile",
        "data.num_workers",
        "data.max_skipped",
        "data.val",
    }
)


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

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is above 0, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are two numbers, 0 <= beta < 1, got {list(self.betas)}")
        for key in ("eps", "weight_decay", "max_grad_norm"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} is at least 0, got {getattr(self, key)}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps: linear warm-up from 0, then ``cosine`` down to ``end_lr``, or ``constant``."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    end_lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.end_lr < 0:
            raise ConfigError(f"warmup_steps and end_lr are at least 0, got {self.warmup_steps} and {self.end_lr}")


@dataclass(frozen=True)
class EmaConfig:
    """Running average of the weights, which is what is evaluated and exported."""

    enabled: bool = True
    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay is a number, 0 <= decay < 1, got {self.decay}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: of the run; its folder is ``output_dir/name``.
        task: ``tokenizer`` or ``generator``.
        model: a registered ``name``, or a ``family``, and differences from its configuration.
        data: pictures (``tokenizer``), or pictures to be tokenized or token shards (``generator``).
        loss: the task's own terms and weights.
        optimizer, schedule, ema: of the model.
        discriminator: of the discriminator, where there is one; None for the model's settings.
        steps: optimizer steps.
        batch_size: images a step, over all processes and micro batches.
        gradient_accumulation: micro batches a step.
        seed: of weights, data order, augmentation and every draw.
        mixed_precision: ``no``, ``fp16`` or ``bf16``. Weights, averages and optimizers stay fp32.
        freeze_encoder: train the decoding half alone (stage 2 of the two-stage recipe).
        gradient_checkpointing: recompute blocks in the backward pass.
        compile: run modules under ``torch.compile``.
        init_from: weights to start from: a name, hub id, folder or file; "" for fresh ones.
        output_dir: folder of runs.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        keep_checkpoints: how many stay.
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
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is a whole number, 0 <= seed < 2^63, got {self.seed}")
        for key in ("checkpoint_every", "log_every", "preview_every", "eval_every"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} is a number of steps, or 0, got {getattr(self, key)}")
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide into {self.gradient_accumulation} micro batches"
            )
        if not self.name or self.name in (".", "..") or "/" in self.name:
            raise ConfigError(f"name is the run's folder below output_dir, without slashes; got {self.name!r}")
        if not ({"name", "family"} & self.model.keys()):
            raise ConfigError("model wants a registered `name` or a `family`")


def dry_run_config(
    config: TrainConfig, folder: str | Path, *, processes: int = 1, samples: bool = False
) -> TrainConfig:
    """Two steps of the same recipe on random pictures, offline.

    Whatever the recipe does is done once: an adversary starts at the second step, there is a
    preview, an evaluation where the recipe has some, and a checkpoint. A tokenizer's helping
    networks keep random weights; a generator's own tokenizer is still loaded, and token shards are read.

    Args:
        config: the recipe.
        folder: that takes the place of ``output_dir``.
        processes: which share the batch, two pictures each in a micro batch.
        samples: whether the model decodes by sampling, in steps that its configuration numbers.
    """
    loss, model = dict(config.loss), dict(config.model)
    if config.task == "tokenizer":
        if samples:  # one step shows that it runs, and a picture of two steps of training shows nothing more
            model["sampling"] = {**model.get("sampling", {}), "steps": 1}
        loss["pretrained"] = False
        if loss.get("adversarial_weight"):
            loss["adversarial_start"] = 1
    data = replace(config.data, num_workers=0)
    if not config.data.train.startswith(PREFIX):
        data = replace(data, train="random:4", val="random:2")
    return replace(
        config,
        steps=2,
        batch_size=2 * config.gradient_accumulation * processes,
        data=data,
        model=model,
        loss=loss,
        mixed_precision="no",
        compile=False,
        init_from="",
        trackers=(),
        output_dir=str(folder),
        checkpoint_every=2,
        log_every=1,
        preview_every=2,
        eval_every=2 if config.eval_every else 0,
    )


def changed_keys(before: dict[str, Any], now: TrainConfig) -> list[str]:
    """What makes a configuration another run than the one that was saved: ``key (old -> new)``, sorted.

    Args:
        before: ``to_dict`` of the saved configuration, perhaps of an older version with fewer keys.
        now: the present one.
    """
    try:
        before = to_dict(from_dict(TrainConfig, before, where="the checkpoint"))  # fills in newer keys' defaults
    except ConfigError:
        pass  # it has a key that is gone: compare what is there
    return _differences(before, to_dict(now), "")


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    out = []
    for key in sorted(before.keys() | now.keys()):
        dotted, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if old == new or dotted in _FREE_KEYS:
            continue
        nested = isinstance(old, dict) and isinstance(new, dict)
        out += _differences(old, new, f"{dotted}.") if nested else [f"{dotted} ({old!r} -> {new!r})"]
    return out
