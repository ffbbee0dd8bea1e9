"""Training generators on the tokens of a tokenizer, tokenized once when the run begins."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from vistok.config import from_dict
from vistok.data import open_dataset
from vistok.errors import ConfigError
from vistok.generate import Generator, TokenDataset, tokenize_images
from vistok.generate.base import evaluating
from vistok.hub import from_pretrained
from vistok.models.base import Tokenizer
from vistok.registry import get_card, model_class
from vistok.seeds import stable_seed
from vistok.training.config import TrainConfig
from vistok.training.task import Task, make_model

logger = logging.getLogger(__name__)

_PREVIEW_IMAGES = 8
_TERMS = ("nll_per_token",)  # of the generators' outputs, what is logged beside the loss where there is such a thing


@dataclass(frozen=True)
class GeneratorLossConfig:
    """What a generator learns from.

    Attributes:
        tokenizer: whose tokens: a name, hub id, folder or file.
        views: augmented views of every picture in the bank of tokens.
        pretrained: False gives what reads captions for the tokenizer's decoder random weights (dry runs, tests).
    """

    tokenizer: str
    views: int = 8
    pretrained: bool = True


class GeneratorTask(Task):
    """A generator on a bank of tokens; ``config.loss`` is a ``GeneratorLossConfig``.

    The generator's codebook, length and classes are the tokenizer's and the data's: the
    configuration need not say them.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.loss_config = from_dict(GeneratorLossConfig, config.loss, where="loss")
        self.tokenizer = from_pretrained(self.loss_config.tokenizer)
        if not isinstance(self.tokenizer, Tokenizer):
            raise ConfigError(f"{self.loss_config.tokenizer} is a {type(self.tokenizer).__name__}, and no tokenizer")
        images = open_dataset(config.data, train=True, image_size=self.tokenizer.image_size)
        self.bank = tokenize_images(self.tokenizer, images, views=self.loss_config.views, seed=config.seed)
        classes = tuple(images.source.classes)
        facts = {
            "codebook_size": self.tokenizer.codebook_size,
            "code_dim": self.bank.tokens.channels,
            "num_tokens": self.tokenizer.num_tokens,
            "num_classes": len(classes),
            "class_names": classes,
            "tokenizer_family": self.tokenizer.family,
            "tokenizer_model": self.tokenizer.name,
            "tokenizer_hash": self.tokenizer.weight_hash(),
        }
        torch.manual_seed(config.seed)
        self.model = make_model({**self._known_facts(facts), **config.model})
        if not isinstance(self.model, Generator):
            raise ConfigError(
                f"task: generator trains a generator, and {config.model} is a {type(self.model).__name__}"
            )
        if self.model.continuous != self.tokenizer.continuous:
            kinds = {True: "continuous latents", False: "ids"}
            raise ConfigError(
                f"{self.loss_config.tokenizer} makes {kinds[self.tokenizer.continuous]}, and this "
                f"{self.model.family} wants {kinds[self.model.continuous]}"
            )
        self._cut(self.bank)
        if config.init_from:
            self.model.load_weights(from_pretrained(config.init_from).state_dict(), where=config.init_from)
        self.modules["model"] = self.model
        size = self.tokenizer.codebook_size
        self.codebook_size = math.prod(size) if isinstance(size, tuple) else size or 0
        self._ids: Tensor | None = None
        if self.tokenizer.conditional:
            from vistok.models.text import ClipTextFeatures

            self.frozen["text"] = ClipTextFeatures(pretrained=self.loss_config.pretrained)

    def _known_facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Those of these facts that the family's configuration has, and what it takes from the captions of the data."""
        spec = self.config.model
        card = get_card(spec["name"]) if "name" in spec else None
        cls = model_class(card.family if card is not None else spec["family"])
        values = {**(card.config if card is not None else {}), **spec}
        names = {field.name for field in fields(cls.config_class)}
        more = cls.data_facts(values, self.bank.captions) if issubclass(cls, Generator) else {}
        if values.get("num_tokens", facts["num_tokens"]) < facts["num_tokens"] and self._cuttable:
            more["num_tokens"] = values["num_tokens"]
            logger.info("it learns the first %d of %d tokens", values["num_tokens"], facts["num_tokens"])
        return {name: value for name, value in facts.items() if name in names} | more

    def dataset(self, *, train: bool) -> Dataset:
        """The bank of the training pictures, or the tokens of the validation pictures."""
        if train:
            return self.bank
        images = open_dataset(self.config.data, train=False, image_size=self.tokenizer.image_size)
        bank = tokenize_images(self.tokenizer, images)
        self._cut(bank)
        return bank

    @property
    def _cuttable(self) -> bool:
        """Whether the tokenizer's first tokens alone are a picture."""
        return self.tokenizer.ordered or self.tokenizer.adaptive

    def _cut(self, bank: TokenDataset) -> None:
        """Keep of every row what the generator writes: the first tokens, where it is shorter than an ordered tokenizer."""
        count, of = self.model.num_tokens, self.tokenizer.num_tokens
        if count < of and not self._cuttable:
            raise ConfigError(
                f"the generator writes {count} of the {of} tokens of {self.loss_config.tokenizer}, which decodes no fewer than all; "
                "leave model.num_tokens away"
            )
        bank.tokens = bank.tokens.truncate(count)

    def collate(self, items: list[Any]) -> dict[str, Any]:
        """torch's default."""
        return default_collate(items)

    def phases(self, step: int) -> tuple[str, ...]:
        """One model, at every step."""
        return ("model",)

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's own; its terms are the negative log-likelihood a token, in nats, where it has one."""
        self._ids = batch.get("ids")
        out = self._forward(self.wrapped["model"], batch, progress=step / max(1, self.config.steps))
        return out["loss"], {name: out[name] for name in _TERMS if name in out}

    def _forward(self, model: nn.Module, batch: dict[str, Any], *, progress: float) -> dict[str, Tensor]:
        return model(
            batch["latents"] if self.model.continuous else batch["ids"],
            self.model.training_condition(batch),
            lengths=batch["length"],
            sample_seeds=batch["sample_seed"],
            progress=progress,
        )

    def codebook_ids(self) -> Tensor | None:
        """Ids of the last micro batch."""
        return self._ids

    @torch.no_grad()
    def preview(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor | None:
        """Samples of the classes or captions of eight items of a batch."""
        few = {name: values[:_PREVIEW_IMAGES] for name, values in batch.items()}
        seeds = list(range(len(few["label"])))
        tokens = modules["model"].generate(modules["model"].sampling_condition(few), seeds=seeds).tokens
        text = self.frozen["text"](few["caption"]) if "text" in self.frozen else None
        return torch.cat(list(self.tokenizer.decode(tokens, condition=text)), dim=2)

    @torch.no_grad()
    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """On the validation pictures: the negative log-likelihood a token in nats, or the loss of models that have none.

        Models that do not write in order are asked for their loss, under masks and noise that are the same each time.
        """
        model = modules["model"]
        held_out: TokenDataset = self.dataset(train=False)
        if model.autoregressive:
            batch = self.collate([held_out[row] for row in range(len(held_out))])
            scores = model.log_prob(held_out.tokens, model.sampling_condition(batch))
            return {"nll_per_token": float(-scores.sum() / held_out.tokens.lengths.sum())}
        totals: dict[str, float] = {}
        with evaluating(model):
            for start in range(0, len(held_out), self.config.batch_size):
                rows = range(start, min(start + self.config.batch_size, len(held_out)))
                batch = self.collate([held_out[row, stable_seed("evaluation", row)] for row in rows])
                batch = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
                out = self._forward(model, batch, progress=1.0)
                for name in ("loss", *_TERMS):
                    if name in out:
                        totals[name] = totals.get(name, 0.0) + float(out[name]) * len(rows)
        return {name: total / len(held_out) for name, total in totals.items()}

    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        """``save_pretrained`` of the averaged generator."""
        modules["model"].save_pretrained(folder)
