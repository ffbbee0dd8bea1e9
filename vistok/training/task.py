"""What is trained: modules, their losses, their data. The loop knows nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vistok.config import from_dict, merge
from vistok.hub import create_model, empty_model
from vistok.registry import FAMILIES, get_card, model_class
from vistok.training.config import OptimizerConfig, TrainConfig


class Task(ABC):
    """One kind of training.

    Attributes:
        config: of the run.
        modules: what is trained, by name, in the order of their updates; each has its optimizer.
        wrapped: the same modules as accelerate prepared them (distributed, compiled); a loss must
            go through these, so that gradients are averaged.
        frozen: networks that help and are not trained or saved.
        extra: small modules with buffers that belong into checkpoints (running averages).
        averaged: names of the modules that an average is kept of, and that are exported.
        codebook_size: number of ids, for the codebook's statistics; 0 for none.
        find_unused_parameters: True if a loss may leave out some of its module's parameters, which
            distributed training must know (and which costs it time).
    """

    averaged: tuple[str, ...] = ("model",)
    codebook_size: int = 0
    find_unused_parameters: bool = False

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.modules: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.frozen: dict[str, nn.Module] = {}
        self.extra: dict[str, nn.Module] = {}

    def optimizer_config(self, name: str) -> OptimizerConfig:
        """Settings of one module's optimizer."""
        return self.config.optimizer

    def schedule_steps(self, name: str) -> int:
        """The horizon of one module's learning rate."""
        return self.config.steps

    def prepare(self, *, device: torch.device) -> None:  # noqa: B027 - most tasks need nothing here
        """Called once, after the modules are on their device and before the first step of a fresh run."""

    @abstractmethod
    def dataset(self, *, train: bool) -> Dataset:
        """A map-style data set with keys (index, sample seed), whose items ``collate`` puts together."""

    @abstractmethod
    def collate(self, items: list[Any]) -> dict[str, Any]:
        """A batch of items; tensors in it are moved to the device."""

    @abstractmethod
    def phases(self, step: int) -> tuple[str, ...]:
        """Names of the modules that are updated at this step, in order."""

    @abstractmethod
    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one phase on a micro batch, and its named terms.

        The phases of a micro batch follow each other, before any weight changes: a phase may leave
        what a later one needs (a detached reconstruction) in ``batch``. While a phase runs, the
        parameters of the other modules take no gradient.

        Args:
            phase: name of the module to be updated.
            batch: this process's part, on the device.
            step: optimizer steps done before (0-based).
            generator: a CPU generator for the phase's draws, equal in all processes; torch's own
                generators are seeded with the same number.
        Returns:
            a scalar, the mean over the items of the batch (so that the mean over processes is that
            of the joint batch), and scalars to be logged as ``train/NAME``.
        """

    def codebook_ids(self) -> Tensor | None:
        """Ids of the last micro batch, for the codebook's statistics."""
        return None

    def preview(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor | None:
        """A picture [3, H, W] in [0, 1] of what the (averaged) modules make of a batch.

        Called on the main process only, always with the same few training items.
        """
        return None

    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """Numbers of the (averaged) modules on held-out data, logged as ``eval/NAME``.

        Called on all processes, which may share the work; the main one's numbers are logged.
        """
        return {}

    @abstractmethod
    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        """Write the (averaged) modules for use."""


def decodes_in_steps(spec: dict[str, Any]) -> bool:
    """Whether the model of a specification decodes by sampling, with a number of steps in its configuration."""
    family = get_card(spec["name"]).family if "name" in spec else spec.get("family", "")
    return family in FAMILIES and any(field.name == "sampling" for field in fields(model_class(family).config_class))


def training_bytes(spec: dict[str, Any], *, average: bool) -> int:
    """Memory that training a model takes in fp32 beside its activations, found without allocating it.

    Weights, gradients, AdamW's two moments, and the running average; helping networks are not counted.
    """
    rest = {key: value for key, value in spec.items() if key not in ("name", "family")}
    card = get_card(spec["name"]) if "name" in spec else None
    cls = model_class(card.family if card else spec["family"])
    model = empty_model(cls, from_dict(cls.config_class, merge(card.config if card else {}, rest), where="model"))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * (total * (2 if average else 1) + 3 * trained)


def make_model(spec: dict[str, Any]) -> Any:
    """A fresh model from a registered ``name`` or a ``family``, and differences from its configuration."""
    rest = {key: value for key, value in spec.items() if key not in ("name", "family")}
    if "name" in spec:
        return create_model(spec["name"], **rest)
    return model_class(spec["family"]).from_config(rest)
