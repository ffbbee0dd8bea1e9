"""``flexar``: FlexTok's autoregressive transformers over its tokens, from classes or captions (arXiv:2502.13967).

The sequence is [start, token 0, token 1, ...]; position i predicts token i. A class is added to the
start; a caption is read by every block through attention to Flan-T5's states. How blocks are put
together is data of the checkpoint (``vistok.convert.flexar``). Loads EPFL-VILAB/FlexAR-* and GridAR-3B-T2I.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError, VistokError
from vistok.generate.base import class_labels
from vistok.generate.config import GeneratorConfig, check_config, check_heads
from vistok.generate.flexar_blocks import Activation, ActivationMlp, AttentionConfig, FlexARBlock, NormConfig
from vistok.generate.kv_cache import KVCache
from vistok.generate.sampling import SamplingConfig
from vistok.generate.softmax import SoftmaxGenerator
from vistok.generate.text import TextCondition, t5_features
from vistok.layers.positions import sincos_2d

TextEncoder = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # captions -> states [B, n, D] and mask bool [B, n]
_NULL, _NULL_THEN_FIRST = -1, -2  # what stands for no class; and for no class that becomes class 0


@dataclass(frozen=True)
class FlexARSampling(SamplingConfig):
    """How FlexAR's tokens are drawn.

    Attributes:
        shipped_null: guide by class as the released code does: after the first token that is drawn, its half without a class has
            class 0 (tench), for it writes over the mark of "no class". Off, that half never has a class, as is meant. On
            reproduces samples of the released class models. No matter with captions.
    """

    shipped_null: bool = False


@dataclass(frozen=True)
class TextConfig:
    """What a model from captions reads.

    Attributes:
        model: the text encoder, of which the checkpoint has no weights: its name for transformers, or ``tiny`` for a small one
            (64 channels) of random weights, which tells captions apart and no more.
        width: of its states.
        out_width: to which an MLP brings them, for the blocks to read; None is the transformer's.
        length: captions are cut at this many of its tokens.
        activation, bias: of that MLP.
    """

    model: str = "google/flan-t5-xl"
    width: int = 2048
    out_width: int | None = None
    length: int = 128
    activation: Activation = "gelu_tanh"
    bias: bool = False


@dataclass(frozen=True)
class FlexARConfig(GeneratorConfig):
    """Configuration of ``FlexAR``.

    Attributes:
        codebook_size: of the tokenizer: K, or the factors (FSQ levels) of which it is the product.
        num_tokens: L, the largest number of tokens.
        num_classes: number of classes; 0 for none, as with captions.
        class_names: their names, which may then stand for the numbers; () for none.
        text: what is read of captions; None for no captions.
        width, depth: the transformer's size.
        attention: of the tokens among themselves.
        reading: of the tokens to a caption; only with ``text``.
        norm: before attention and MLPs, and after the last block if ``last_norm``.
        last_norm: whether there is one.
        mlp: its activation, or ``swiglu``.
        hidden_width: inside the MLPs; None is four times the width, or 8/3 rounded up to a multiple of 256 (swiglu).
        mlp_bias: whether the MLPs have biases.
        positions: ``learned``, a ``sincos`` table or ``none``.
        head_norm: a layer norm of the head's own.
        head_bias: whether the head has a bias.
        class_dropout: the share of training rows whose class or caption is hidden, so that guidance works.
        sampling: the defaults of ``generate``.
    """

    codebook_size: int | tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    num_tokens: int = 256
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    text: TextConfig | None = None
    width: int = 768
    depth: int = 12
    attention: AttentionConfig = AttentionConfig()
    reading: AttentionConfig = AttentionConfig()
    norm: NormConfig = NormConfig()
    last_norm: bool = True
    mlp: Literal["swiglu", "gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    hidden_width: int | None = None
    mlp_bias: bool = False
    positions: Literal["learned", "sincos", "none"] = "learned"
    head_norm: bool = False
    head_bias: bool = False
    class_dropout: float = 0.1
    sampling: FlexARSampling = field(default_factory=FlexARSampling)

    def __post_init__(self) -> None:
        check_config(
            self,
            sizes=("num_tokens", "width", "depth", "mlp_width"),
            shares=("class_dropout",),
        )
        if self.text and self.num_classes:
            raise ConfigError(
                f"a model reads either classes or captions, got num_classes {self.num_classes} and a text"
            )
        if self.positions == "sincos" and self.width % 4:
            raise ConfigError(f"a sincos table has a width of a multiple of four, got {self.width}")
        for attention in (self.attention, self.reading) if self.text else (self.attention,):
            check_heads(self.width, attention.num_heads)

    @property
    def mlp_width(self) -> int:
        """Inside the MLPs."""
        return default_hidden_width(self.width, self.mlp) if self.hidden_width is None else self.hidden_width


def default_hidden_width(width: int, mlp: str) -> int:
    """Four times the width; of a gated MLP two thirds of that, rounded up to a multiple of 256."""
    return -(-int(8 * width / 3) // 256) * 256 if mlp == "swiglu" else 4 * width


class FlexAR(SoftmaxGenerator):
    """A causal transformer from a class or a caption, with one softmax over all ids."""

    family = "flexar"
    config_class = FlexARConfig
    config: FlexARConfig

    def __init__(self, config: FlexARConfig) -> None:
        super().__init__(config)
        width, text = config.width, config.text
        self.text = None
        if text is not None:
            self.text = ActivationMlp(
                text.width, text.width, out_width=text.out_width or width, activation=text.activation, bias=text.bias
            )
        self.start_embed = nn.Parameter(torch.empty(1, 1, width))
        self.token_embed = nn.Embedding(config.vocab_size, width)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(config.num_tokens, width))
        elif config.positions == "sincos":
            # The table of a one-column grid behind a class token: row 0 is all zeros, and row i is position i - 1.
            table = sincos_2d(config.num_tokens, 1, width)[0, :, :, 0].t()
            self.register_buffer("pos_embed", torch.cat([torch.zeros(1, width), table[:-1]]))
        self.class_embed = nn.Embedding(config.num_classes, width) if config.num_classes else None
        self.blocks = nn.ModuleList(
            FlexARBlock(
                width,
                attention=config.attention,
                reading=config.reading if text else None,
                text_width=text.out_width if text else None,
                norm=config.norm,
                mlp=config.mlp,
                hidden_width=config.mlp_width,
                mlp_bias=config.mlp_bias,
            )
            for _ in range(config.depth)
        )
        self.norm = config.norm.make(width) if config.last_norm else nn.Identity()
        self.head_norm = nn.LayerNorm(width, eps=1e-5) if config.head_norm else nn.Identity()
        self.head = nn.Linear(width, config.vocab_size, bias=config.head_bias)
        self.gradient_checkpointing = False
        self.text_encoder: TextEncoder | None = None  # in place of the one that the configuration names
        self._init_weights()

    def _init_weights(self) -> None:
        """The published one is not known; weights as large as their inputs want, and a stream that keeps its size."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("embed.weight") or name in ("pos_embed", "start_embed"):
                nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim == 2:
                last = name.startswith("blocks") and name.endswith(("proj.weight", "fc2.weight", "down.weight"))
                residuals = (3 if self.config.text else 2) * self.config.depth if last else 1
                nn.init.normal_(parameter, std=(residuals * parameter.shape[1]) ** -0.5)

    @property
    def conditional(self) -> bool:
        return self.config.num_classes > 0 or self.config.text is not None

    @property
    def reads_features(self) -> bool:
        return self.config.text is not None

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("pos_embed", "start_embed", "class_embed.*", "token_embed.*")

    def encode_condition(self, condition: Any) -> Tensor | TextCondition:
        """What the model reads.

        Args:
            condition: from classes: numbers or names, one or many; None and -1 are the null class, returned as -1.
                From captions: one or many strings, or one or many ``TextCondition`` of precomputed states; None is the empty
                caption.
        Raises:
            VistokError: unknown class; states of another width; captions without vistok[text] or without the encoder.
        """
        config = self.config
        if config.text is None:
            names = {"num_classes": config.num_classes, "class_names": config.class_names, "title": self._title}
            return class_labels(condition, **names).to(self.device)
        entries = condition if isinstance(condition, (list, tuple)) else [condition]
        if entries and all(isinstance(entry, TextCondition) for entry in entries):
            condition = functools.reduce(TextCondition.cat, entries)
        else:
            if not entries or not all(isinstance(entry, str) or entry is None for entry in entries):
                raise VistokError(
                    f"{self._title} takes captions, or their features as a vistok.generate.TextCondition; got {condition!r}"
                )
            # Guidance wants the empty caption.
            hidden, mask = self._read_captions(["", *(entry or "" for entry in entries)])
            condition = TextCondition(hidden[1:], mask[1:], hidden[:1], mask[:1])
        if condition.hidden.shape[-1] != config.text.width:
            raise VistokError(
                f"{self._title} reads states of width {config.text.width}, of {config.text.model}; "
                f"got {condition.hidden.shape[-1]}"
            )
        return condition.to(self.device, self.dtype)

    def training_condition(self, batch: Mapping[str, Any]) -> Any:
        if self.config.text is None:
            return super().training_condition(batch)
        return self.encode_condition(list(batch["caption"]))

    @classmethod
    def data_facts(cls, values: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """A model that reads captions leaves the classes of its data alone."""
        return {"num_classes": 0, "class_names": ()} if values.get("text") is not None else {}

    def null_condition(self, condition: Tensor | TextCondition) -> Tensor | TextCondition:
        """No class; or the empty caption, which the text encoder reads where the features do not bring it."""
        if not isinstance(condition, TextCondition):
            return torch.full_like(condition, _NULL)
        if condition.null_hidden is None:
            hidden, mask = self._read_captions([""])
            condition = TextCondition(condition.hidden, condition.mask, hidden, mask).to(self.device, self.dtype)
        return condition.null()

    def guidance_condition(self, condition: Any, sampling: SamplingConfig) -> Any:
        null = self.null_condition(condition)
        if getattr(sampling, "shipped_null", False) and self.class_embed is not None:
            return torch.full_like(null, _NULL_THEN_FIRST)
        return null

    def join_conditions(self, first: Any, second: Any) -> Any:
        return TextCondition.cat(first, second) if isinstance(first, TextCondition) else torch.cat([first, second])

    def hide_conditions(self, condition: Any, hidden: Tensor) -> Any:
        if not isinstance(condition, TextCondition):
            return condition.masked_fill(hidden, _NULL)
        both = TextCondition.cat(condition, self.null_condition(condition))
        rows = torch.arange(len(condition), device=condition.device)
        return both[rows + len(condition) * hidden]

    def states(self, ids: Tensor, condition: Any) -> Tensor:
        x = torch.cat([self._embed_start(condition), self.token_embed(ids[:, :-1])], dim=1)
        return self._run(x, self._read_text(condition) if self.text is not None else None)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.head_norm(hidden))

    def new_cache(self, num_rows: int, *, dtype: torch.dtype | None = None, static: bool | None = None) -> KVCache:
        """An empty cache.

        Args:
            num_rows: B.
            dtype: of keys and values; None is the weights'.
            static: see ``KVCache``; None is on CUDA.
        """
        config, heads = self.config, self.config.attention.num_heads
        return self._make_cache(
            num_rows, depth=config.depth, num_heads=heads, head_dim=config.width // heads, dtype=dtype, static=static
        )

    def read_condition(self, condition: Any, cache: KVCache) -> Tensor:
        if self.text is not None:  # once for the whole row
            cache.keep(**self._read_text(condition))
        elif bool((condition == _NULL_THEN_FIRST).any()):
            cache.keep(labels=condition)
        return self._advance(self._embed_start(condition), cache)[:, -1]

    def read_tokens(self, ids: Tensor, start: int, cache: KVCache) -> Tensor:
        del start  # the cache knows
        return self._advance(self.token_embed(ids), cache)

    def after_first_draw(self, given: Tensor, cache: KVCache) -> int:
        """See ``FlexARSampling``: all is read again, from a start of another class."""
        labels = cache.context.pop("labels", None)
        if labels is None:
            return 0
        cache.truncate(0)
        start = self._embed_start(labels.masked_fill(labels == _NULL_THEN_FIRST, 0))
        self._advance(torch.cat([start, self.token_embed(given)], dim=1), cache)
        return cache.length

    def read_on(self, x: Tensor, cache: KVCache) -> Tensor:
        return self._run(x, cache.context if self.text is not None else None, cache)

    def _read_captions(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        text = self.config.text
        encoder = self.text_encoder or t5_features(text.model, text.length, self.device)
        return encoder(captions)

    def _read_text(self, condition: TextCondition) -> dict[str, Tensor]:
        """Keys and values of all blocks, [B, depth, heads, m, d], and the mask, [B, 1, 1, m]."""
        text = self.text(condition.hidden)
        pairs = [block.read.read(text) for block in self.blocks]
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*pairs, strict=True))
        return {"text_keys": keys, "text_values": values, "text_mask": condition.mask[:, None, None]}

    def _embed_start(self, condition: Any) -> Tensor:
        """The start [B, 1, D], with its class where there is one."""
        x = self.start_embed.repeat(len(condition), 1, 1)  # of the strides of any later input
        if self.class_embed is None:
            return x
        classes = self.class_embed(condition.clamp_min(0)) * (condition >= 0)[:, None]
        return x + classes[:, None]

    def _run(self, x: Tensor, text: dict[str, Tensor] | None, cache: KVCache | None = None) -> Tensor:
        """Positions, blocks and the last norm, [B, n, D] -> [B, n, D]."""
        if self.config.positions != "none":
            x = x + self.pos_embed[slice(0, x.shape[1]) if cache is None else cache.positions(x.shape[1])]
        mask = None if cache is None else cache.mask(x.shape[1])
        for layer, block in enumerate(self.blocks):
            own = (text["text_keys"][:, layer], text["text_values"][:, layer], text["text_mask"]) if text else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, own, use_reentrant=False)
            else:
                x = block(x, own, cache, layer, mask)
        return self.norm(x)
