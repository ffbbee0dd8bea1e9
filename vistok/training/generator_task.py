"""Training generators on the tokens of a tokenizer, tokenized once when the run begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from vistok.config import from_dict
from vistok.data import open_dataset
from vistok.errors import ConfigError
from vistok.generate import Generator, TokenDataset, tokenize_images
from vistok.hub import from_pretrained
from vistok.models.base import Tokenizer
from vistok.registry import get_card, model_class
from vistok.training.config import TrainConfig
from vistok.training.task import Task, make_model


@dataclass(frozen=True)
class GeneratorLossConfig:
    """What a generator learns from.

    Attributes:
        tokenizer: whose tokens: a name, hub id, folder or file.
        views: augmented views of every picture in the bank of tokens.
    """

    tokenizer: str
    views: int = 8


class GeneratorTask(Task):
    """A generator on a bank of tokens; ``config.loss`` is a ``GeneratorLossConfig``.

    The generator's codebook, length and classes are the tokenizer's and the data's: the
    configuration need not say them.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.loss_config = from_dict(GeneratorLossConfig, config.loss, where="loss")
        self.tokenizer = from_pretrained(self.loss_config.tokenizer)
        if not isinstance(self.tokenizer, Tokenizer) or self.tokenizer.continuous:
            raise ConfigError(f"{self.loss_config.tokenizer} does not make ids, which this generator needs")
        images = open_dataset(config.data, train=True, image_size=self.tokenizer.image_size)
        self.bank = tokenize_images(self.tokenizer, images, views=self.loss_config.views, seed=config.seed)
        classes = tuple(images.source.classes)
        facts = {
            "codebook_size": self.tokenizer.codebook_size,
            "num_tokens": self.tokenizer.num_tokens,
            "num_classes": len(classes),
            "class_names": classes,
            "tokenizer_family": self.tokenizer.family,
            "tokenizer_model": self.tokenizer.name,
            "tokenizer_hash": self.tokenizer.weight_hash(),
        }
        torch.manual_seed(config.seed)
        self.model = make_model({**facts, **self._data_facts(), **config.model})
        if not isinstance(self.model, Generator):
            raise ConfigError(
                f"task: generator trains a generator, and {config.model} is a {type(self.model).__name__}"
            )
        if config.init_from:
            self.model.load_weights(from_pretrained(config.init_from).state_dict(), where=config.init_from)
        self.modules["model"] = self.model
        size = self.tokenizer.codebook_size
        self.codebook_size = math.prod(size) if isinstance(size, tuple) else size
        self._ids: Tensor | None = None

    def _data_facts(self) -> dict[str, Any]:
        """What this family takes from the captions of the data."""
        spec = self.config.model
        card = get_card(spec["name"]) if "name" in spec else None
        cls = model_class(card.family if card is not None else spec["family"])
        values = {**(card.config if card is not None else {}), **spec}
        return cls.data_facts(values, self.bank.captions) if issubclass(cls, Generator) else {}

    def dataset(self, *, train: bool) -> Dataset:
        """The bank of the training pictures, or the tokens of the validation pictures."""
        if train:
            return self.bank
        images = open_dataset(self.config.data, train=False, image_size=self.tokenizer.image_size)
        return tokenize_images(self.tokenizer, images)

    def collate(self, items: list[Any]) -> dict[str, Any]:
        """torch's default."""
        return default_collate(items)

    def phases(self, step: int) -> tuple[str, ...]:
        """One model, at every step."""
        return ("model",)

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood a token, in nats."""
        self._ids = batch["ids"]
        out = self.wrapped["model"](
            batch["ids"],
            self.model.training_condition(batch),
            lengths=batch["length"],
            sample_seeds=batch["sample_seed"],
            progress=step / max(1, self.config.steps),
        )
        return out["loss"], {"nll_per_token": out["nll_per_token"]}

    def codebook_ids(self) -> Tensor | None:
        """Ids of the last micro batch."""
        return self._ids

    @torch.no_grad()
    def preview(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor | None:
        """Eight samples of the classes of a batch."""
        labels = batch["label"][:8].tolist()
        tokens = modules["model"].generate(labels, seeds=list(range(len(labels)))).tokens
        return torch.cat(list(self.tokenizer.decode(tokens)), dim=2)

    @torch.no_grad()
    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """Negative log-likelihood a token on the validation pictures, in nats."""
        held_out: TokenDataset = self.dataset(train=False)
        labels = held_out.labels[: len(held_out)]
        scores = modules["model"].log_prob(held_out.tokens, labels)
        return {"nll_per_token": float(-scores.sum() / held_out.tokens.lengths.sum())}

    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        """``save_pretrained`` of the averaged generator."""
        modules["model"].save_pretrained(folder)
