"""``maskgit``: class to image over the tokens of a tokenizer, filled in a few steps, the surest first (arXiv:2202.04200).

Matches the published generators of TiTok (arXiv:2406.07550, section 4) and of One-D-Piece (arXiv:2501.10064): a ``bert``
of post-norm blocks, or a ``uvit`` with long skips. The sequence is the class, then the tokens; nothing hides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.generate.base import GenerationResult
from vistok.generate.class_conditions import ClassConditions
from vistok.generate.config import GeneratorConfig, check_config
from vistok.generate.masked import (
    Filled,
    MaskedGenerator,
    MaskedSamplingConfig,
    RowNoise,
    StepNoise,
    fill_ids,
    masked_loss,
    masks_of,
)
from vistok.generate.sampling import uniforms_of
from vistok.layers.masked_transformers import PostNormTransformer, SkipTransformer

Network = Literal["bert", "uvit"]
_INIT_STD = 0.02


@dataclass(frozen=True)
class MaskGitConfig(GeneratorConfig):
    """Configuration of ``MaskGit``.

    Attributes:
        network: ``bert``, or ``uvit``, whose ``depth`` is even and does not count the block in the middle.
        codebook_size: of the tokenizer: K, or the factors of which it is the product.
        num_tokens: L; of an ordered tokenizer it may be fewer than it has.
        num_classes: number of classes; 0 for none.
        class_names: their names, which may then stand for the numbers; () for none.
        width, depth, num_heads, hidden_width: the transformer's size; ``hidden_width`` is inside the MLPs.
        dropout: of ``bert``, in training.
        class_dropout: the share of training rows whose class is hidden, so that guidance works.
        label_smoothing, unmasked_weight: of the loss; what visible tokens count beside hidden ones.
        sampling: the defaults of ``generate``.
    """

    network: Network = "bert"
    codebook_size: int | tuple[int, ...] = 4096
    num_tokens: int = 32
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    width: int = 768
    depth: int = 24
    num_heads: int = 16
    hidden_width: int = 3072
    dropout: float = 0.1
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    unmasked_weight: float = 0.1
    sampling: MaskedSamplingConfig = field(default_factory=MaskedSamplingConfig)

    def __post_init__(self) -> None:
        if self.network not in get_args(Network):
            raise ConfigError(f"network is one of {', '.join(get_args(Network))}; got {self.network}")
        check_config(
            self,
            sizes=("num_tokens", "width", "depth", "num_heads", "hidden_width"),
            shares=("dropout", "class_dropout", "label_smoothing"),
        )
        if self.network == "uvit" and self.depth % 2:
            raise ConfigError(f"the depth of a uvit is even, half of it before the middle; got {self.depth}")
        if not 0.0 <= self.unmasked_weight <= 1.0:
            raise ConfigError(f"unmasked_weight is from 0 to 1, got {self.unmasked_weight}")


class MaskGit(MaskedGenerator, ClassConditions):
    """Fills in tokens under a class."""

    family = "maskgit"
    config_class = MaskGitConfig
    config: MaskGitConfig

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__(config)
        width = config.width
        # One table: the ids, "hidden", the classes, "no class".
        self.embed = nn.Embedding(config.vocab_size + config.num_classes + 2, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens + 1, width))
        size = (width, config.depth, config.num_heads, config.hidden_width)
        self.transformer: PostNormTransformer | SkipTransformer
        if config.network == "bert":
            # Two rows as BERT has them, of which the first one is added everywhere.
            self.type_embed = nn.Parameter(torch.zeros(2, width))
            self.transformer = PostNormTransformer(*size, dropout=config.dropout)
        else:
            self.transformer = SkipTransformer(*size)
        self.head = nn.Linear(width, config.vocab_size)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        if self.config.network == "bert":
            nn.init.trunc_normal_(self.type_embed, std=_INIT_STD)

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        return self.config.codebook_size

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("embed.*", "pos_embed", "type_embed")

    def logits(self, ids: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Logits [B, L, K] of all tokens.

        Args:
            ids: int64 [B, L]; those that are masked have no meaning.
            masked: bool [B, L], True where hidden.
            condition: classes int64 [B]; -1 is none.
        """
        config = self.config
        classes = torch.where(condition < 0, config.num_classes, condition) + config.vocab_size + 1
        rows = torch.cat([classes[:, None], ids.masked_fill(masked, config.vocab_size)], dim=1)
        hidden = self.embed(rows) + self.pos_embed
        if config.network == "bert":
            hidden = hidden + self.type_embed[0]
        return self.head(self.transformer(hidden)[:, 1:])

    def position_logits(self, ids: Tensor, masked: Tensor, condition: Tensor, position: int) -> Tensor:
        return self.logits(ids, masked, condition)[:, position]

    def forward(
        self,
        ids: Tensor,
        condition: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The training loss: the cross-entropy of the hidden ids, and a little of the others; see ``Generator.forward``.

        How many are hidden follows the arccosine of a uniform number.
        """
        del progress  # nothing changes in the course of its training
        self._check_whole(ids, lengths)
        if condition is None:
            condition = torch.full((len(ids),), -1, device=ids.device)
        draws = uniforms_of(ids[:, 0], 2 + self.num_tokens, sample_seeds).to(ids.device)
        if self.training and self.guidable:
            condition = self.hide_conditions(condition, draws[:, 0] < self.config.class_dropout)
        masked = masks_of(draws[:, 1], draws[:, 2:])
        weights = {
            "label_smoothing": self.config.label_smoothing,
            "unmasked_weight": self.config.unmasked_weight,
        }
        return masked_loss(self.logits(ids, masked, condition).float(), ids, masked, **weights)

    def _generate(
        self,
        condition: Tensor,
        num: int,
        length: int,
        prefix: object,
        seeds: Sequence[int],
        sampling: MaskedSamplingConfig,
    ) -> GenerationResult:
        self._check_length(length)
        noise = RowNoise(seeds, length, sampling.steps, self.device)
        filled = self.fill_ids(condition.repeat_interleave(num), noise, sampling)
        return GenerationResult(
            tokens=self.as_tokens(filled.ids),
            seeds=tuple(seeds),
            token_forwards=filled.passes * len(seeds) * (self.num_tokens + 1),
            log_probs=filled.log_probs,
            draw_log_probs=filled.draw_log_probs,
        )

    @torch.no_grad()
    def fill_ids(self, condition: Tensor, noise: StepNoise, sampling: MaskedSamplingConfig) -> Filled:
        """Ids under B classes; see ``vistok.generate.masked.fill_ids``."""
        both = self.join_conditions(condition, self.null_condition(condition))

        def read(ids: Tensor, masked: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
            if not guided:
                return self.logits(ids, masked, condition), None
            return self.logits(torch.cat([ids, ids]), torch.cat([masked, masked]), both).chunk(2)

        masked = torch.ones(len(condition), self.num_tokens, dtype=torch.bool, device=self.device)
        return fill_ids(read, masked, noise, sampling)
