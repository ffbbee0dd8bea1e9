"""Training generators on the tokens of a tokenizer: on shards, or on pictures that are tokenized once when the run begins."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from vistok.config import from_dict
from vistok.data.imagenet import class_words
from vistok.data.token_shards import PREFIX, TokenShards
from vistok.errors import ConfigError
from vistok.generate import Generator, TokenDataset
from vistok.generate.base import evaluating
from vistok.hub import from_pretrained, load_tokenizer
from vistok.layers.nested_dropout import NestedDropout, draw_lengths
from vistok.registry import get_card, model_class
from vistok.seeds import stable_seed
from vistok.tokens import Tokens
from vistok.training.config import TrainConfig
from vistok.training.task import Task, make_model
from vistok.training.token_data import TokenOrigin, open_tokens

logger = logging.getLogger(__name__)

_PREVIEW_IMAGES = 8
_UNSEEN = 0.5  # what an id that does not occur counts, in the frequencies that a generator is compared with
_COUNTED_IMAGES = 20_000
_TERMS = ("nll_per_token",)  # of the generators' outputs, what is logged beside the loss where there is such a thing


@dataclass(frozen=True)
class GeneratorLossConfig:
    """What a generator learns from.

    Attributes:
        tokenizer: whose tokens: a name, hub id, folder or file; of token shards it may be null, and there are
            no preview pictures then.
        views: augmented views of every picture that is tokenized when the run begins; shards have views of their own.
        nested: how many leading tokens of an image count, drawn for each sample, where they alone are a picture:
            ``none`` (all), ``uniform``, ``pow2`` or ``uniform_pow2`` (see ``vistok.layers.nested_dropout``).
        pretrained: False gives what reads captions for the tokenizer's decoder random weights (dry runs, tests).
    """

    tokenizer: str | None = None
    views: int = 8
    nested: NestedDropout = "none"
    pretrained: bool = True


class GeneratorTask(Task):
    """A generator on shards or a bank of tokens; ``config.loss`` is a ``GeneratorLossConfig``.

    The generator's codebook, length and classes are the tokenizer's and the data's: the
    configuration need not say them.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.loss_config = from_dict(GeneratorLossConfig, config.loss, where="loss")
        where = self.loss_config.tokenizer
        self.tokenizer = load_tokenizer(where) if where else None
        self.bank, self.classes = open_tokens(
            config.data, self.tokenizer, train=True, views=self.loss_config.views, seed=config.seed
        )
        if self.tokenizer is not None:
            self.origin = TokenOrigin.of_tokenizer(self.tokenizer)
        else:
            self.origin = TokenOrigin.of_shards(self.bank)
        self._check_origin(self.bank, self.classes)
        facts = {
            "codebook_size": self.origin.codebook_size,
            "num_tokens": self.origin.num_tokens,
            "num_classes": len(self.classes),
            "class_names": tuple(class_words(self.classes)),
            "tokenizer_family": self.origin.family,
            "tokenizer_model": self.origin.name,
            "tokenizer_hash": self.origin.weight_hash,
        }
        if self.origin.continuous:
            facts["code_dim"] = self.bank.channels
        torch.manual_seed(config.seed)
        self.model = make_model({**self._known_facts(facts), **config.model})
        if not isinstance(self.model, Generator):
            raise ConfigError(
                f"task: generator trains a generator, and {config.model} is a {type(self.model).__name__}"
            )
        if self.model.continuous != self.origin.continuous:
            kinds = {True: "continuous latents", False: "ids"}
            raise ConfigError(
                f"{self.origin.title} makes {kinds[self.origin.continuous]}, and this "
                f"{self.model.family} wants {kinds[self.model.continuous]}"
            )
        if self.loss_config.nested != "none" and not self.origin.cuttable:
            raise ConfigError(
                f"{self.origin.title} decodes no fewer than all of its tokens; leave loss.nested={self.loss_config.nested} away"
            )
        self._cut(self.bank)
        if config.eval_every and (config.data.val or config.data.train).startswith(PREFIX):
            self.dataset(train=False)  # what does not fit is an error now, and not at the first evaluation
        if config.init_from:
            self.model.load_weights(from_pretrained(config.init_from).state_dict(), where=config.init_from)
        self.modules["model"] = self.model
        size = self.origin.codebook_size
        self.codebook_size = math.prod(size) if isinstance(size, tuple) else size or 0
        self._ids: Tensor | None = None
        if self.tokenizer is not None and self.tokenizer.conditional:
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
        if values.get("num_tokens", facts["num_tokens"]) < facts["num_tokens"] and self.origin.cuttable:
            more["num_tokens"] = values["num_tokens"]
            logger.info("it learns the first %d of %d tokens", values["num_tokens"], facts["num_tokens"])
        return {name: value for name, value in facts.items() if name in names} | more

    def dataset(self, *, train: bool) -> TokenDataset | TokenShards:
        """The training tokens, or the tokens of the validation data."""
        if train:
            return self.bank
        bank, classes = open_tokens(self.config.data, self.tokenizer, train=False)
        self._check_origin(bank, classes)
        self._cut(bank)
        return bank

    def _check_origin(self, bank: TokenDataset | TokenShards, classes: tuple[str, ...]) -> None:
        """Shards are to be of the one tokenizer, and of the same classes."""
        if not isinstance(bank, TokenShards):
            return
        if bank.tokenizer["weight_hash"] != self.origin.weight_hash:
            raise ConfigError(
                f"the token shards in {bank.folder} are of {TokenOrigin.of_shards(bank).title} "
                f"({bank.tokenizer['weight_hash']}), and not of {self.origin.title} ({self.origin.weight_hash})"
            )
        if classes != self.classes:
            raise ConfigError(
                f"the token shards in {bank.folder} have other classes than the training data: {', '.join(classes[:5])} ... "
                f"({len(classes)}), and not {', '.join(self.classes[:5])} ... ({len(self.classes)})"
            )

    def _cut(self, bank: TokenDataset | TokenShards) -> None:
        """Keep of every row what the generator writes: the first tokens, where it is shorter than an ordered tokenizer."""
        count, of = self.model.num_tokens, self.origin.num_tokens
        if count < of and not self.origin.cuttable:
            raise ConfigError(
                f"the generator writes {count} of the {of} tokens of {self.origin.title}, which decodes no fewer than all; "
                "leave model.num_tokens away"
            )
        bank.keep(count)

    def collate(self, items: list[Any]) -> dict[str, Any]:
        """torch's default, with nested lengths where these are trained."""
        batch = default_collate(items)
        mode = self.loss_config.nested
        if mode != "none":
            drawn = [
                draw_lengths(
                    mode, self.model.num_tokens, 1, generator=torch.Generator().manual_seed(stable_seed(seed, 1))
                )
                for seed in batch["sample_seed"].tolist()
            ]
            batch["length"] = torch.minimum(batch["length"], torch.cat(drawn))
        return batch

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
        if self.tokenizer is None:
            return None
        few = {name: values[:_PREVIEW_IMAGES] for name, values in batch.items()}
        seeds = list(range(len(few["label"])))
        tokens = modules["model"].generate(modules["model"].sampling_condition(few), seeds=seeds).tokens
        text = self.frozen["text"](few["caption"]) if "text" in self.frozen else None
        return torch.cat(list(self.tokenizer.decode(tokens, condition=text)), dim=2)

    @torch.no_grad()
    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """On the validation data: the negative log-likelihood a token in nats, or the loss of models that have none.

        Beside it stands ``unigram_nll``: what the frequencies of the training ids alone reach, whatever the position and
        the condition. A generator that is not clearly below it has learned nothing that holds for other pictures.
        Models that do not write in order are asked for their loss, under masks and noise that are the same each time.
        """
        model = modules["model"]
        held_out = self.dataset(train=False)
        totals: dict[str, float] = {}
        count = 0
        with evaluating(model):
            for start in range(0, len(held_out), self.config.batch_size):
                rows = range(start, min(start + self.config.batch_size, len(held_out)))
                # Whole rows, also where training draws lengths.
                batch = default_collate([held_out[row, stable_seed("evaluation", row)] for row in rows])
                batch = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
                if model.autoregressive:
                    tokens = Tokens(batch["ids"], lengths=batch["length"], codebook_size=self.origin.codebook_size)
                    unigram = -self.unigram_log_probs[tokens.ids.cpu()] * tokens.mask().cpu()
                    log_prob = model.log_prob(tokens, model.sampling_condition(batch))
                    terms = {"nll_per_token": -log_prob.sum(), "unigram_nll": unigram.sum()}
                    count += int(tokens.lengths.sum())
                else:
                    out = self._forward(model, batch, progress=1.0)
                    terms = {name: out[name] * len(rows) for name in ("loss", *_TERMS) if name in out}
                    count += len(rows)
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / count for name, total in totals.items()}

    @cached_property
    def unigram_log_probs(self) -> Tensor:
        """float32 [K]: log-probabilities of ids by how often they occur in (up to 20,000 images of) the training tokens."""
        counts = torch.full((self.codebook_size,), _UNSEEN, dtype=torch.float64)
        for index in range(0, len(self.bank), max(1, len(self.bank) // _COUNTED_IMAGES)):
            item = self.bank[index]
            counts += item["ids"][: int(item["length"])].bincount(minlength=self.codebook_size)
        return (counts / counts.sum()).log().float()

    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        """``save_pretrained`` of the averaged generator."""
        modules["model"].save_pretrained(folder)
