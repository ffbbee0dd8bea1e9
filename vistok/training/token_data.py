"""What a generator learns from: a folder of token shards, or pictures that are tokenized when the run begins."""

from __future__ import annotations

from dataclasses import dataclass

from vistok.data import open_dataset
from vistok.data.config import DataConfig
from vistok.data.token_shards import PREFIX, TokenShards
from vistok.errors import ConfigError
from vistok.generate import TokenDataset, tokenize_images
from vistok.models.base import Tokenizer


@dataclass(frozen=True)
class TokenOrigin:
    """What a generator has to know of the tokenizer whose tokens it learns, which itself need not be there.

    Attributes:
        name, family, weight_hash: of the tokenizer.
        codebook_size: of its ids, None for latents.
        num_tokens: of an image, at most.
        cuttable: whether the first tokens alone are a picture.
    """

    name: str
    family: str
    weight_hash: str
    codebook_size: int | tuple[int, ...] | None
    num_tokens: int
    cuttable: bool

    @property
    def continuous(self) -> bool:
        """Whether it makes latents."""
        return self.codebook_size is None

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.name or f"{self.family} {self.weight_hash}"

    @classmethod
    def of_tokenizer(cls, model: Tokenizer) -> TokenOrigin:
        """Of a tokenizer that is there."""
        names = (model.name, model.family, model.weight_hash())
        return cls(*names, model.codebook_size, model.num_tokens, model.ordered or model.adaptive)

    @classmethod
    def of_shards(cls, shards: TokenShards) -> TokenOrigin:
        """Of the tokenizer that made shards."""
        names = (shards.tokenizer[key] for key in ("name", "family", "weight_hash"))
        cuttable = bool(shards.recipe["ordered"] or shards.recipe["adaptive"])
        return cls(*names, shards.codebook_size, shards.recipe["num_tokens"], cuttable)


def open_tokens(
    config: DataConfig, tokenizer: Tokenizer | None, *, train: bool, views: int = 1, seed: int = 0
) -> tuple[TokenDataset | TokenShards, tuple[str, ...]]:
    """The training or validation set of a configuration, and the names of its classes.

    Args:
        config: ``train`` and ``val`` are ``tokens:FOLDER``, or pictures.
        tokenizer: for pictures.
        train: which of the two.
        views: augmented views of every picture that is tokenized here.
        seed: of these views.
    Raises:
        ConfigError: pictures without a tokenizer, or token shards without validation data.
        DataError: it cannot be opened.
    """
    spec = config.train if train else config.val or config.train
    if spec.startswith(PREFIX) and not train and not config.val:
        raise ConfigError(
            f"{spec} holds nothing out: name validation data (data.val: tokens:FOLDER, or pictures beside loss.tokenizer), "
            "or set eval_every to 0"
        )
    if spec.startswith(PREFIX):
        shards = TokenShards(spec.removeprefix(PREFIX))
        return shards, shards.classes
    if tokenizer is None:
        raise ConfigError(f"{spec} holds pictures: say whose tokens of them are wanted, by loss.tokenizer")
    images = open_dataset(config, train=train, image_size=tokenizer.image_size)
    return tokenize_images(tokenizer, images, views=views, seed=seed), tuple(images.source.classes)
