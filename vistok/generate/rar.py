"""``rar``: an autoregressive generator that learns in random orders and writes in raster order (RAR, arXiv:2411.00776).

The sequence is [start, class, token, token, ...] in the order of generation. A slot carries the position of the token that
it holds and of the token that it must predict next, so one model knows every order; in the course of training random orders
give way to the raster order. Every block is modulated, slot by slot, by the class and the slot's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError
from vistok.generate.class_conditions import ClassConditions
from vistok.generate.config import GeneratorConfig, check_config
from vistok.generate.kv_cache import KVCache, causal_attention
from vistok.generate.sampling import SamplingConfig, uniform_of, uniforms_of
from vistok.generate.softmax import SoftmaxGenerator
from vistok.layers.transformer import Mlp

_NORM_EPS = 1e-6
_INIT_STD = 0.02
_START = 2  # slots before the tokens: the start and the class
_TERMS = 6  # of a block's modulation: shift, scale and gate of attention, then of the MLP
_MEMO_BYTES = 2**28  # of modulation computed ahead


@dataclass(frozen=True)
class RarConfig(GeneratorConfig):
    """Configuration of ``Rar``.

    Attributes:
        codebook_size: of the tokenizer: K, or the factors of which it is the product.
        num_tokens: L.
        num_classes: number of classes; 0 for none.
        class_names: their names, which may then stand for the numbers; () for none.
        width, depth, num_heads, hidden_width: the transformer's size; ``hidden_width`` is inside the MLPs.
        spare_positions, spare_slots: rows of the tables of positions and of slots that nothing reads, as published.
        dropout: on attention, and on the outputs of attention and MLP, in training.
        class_dropout: the share of training rows whose class is hidden, so that guidance works.
        anneal_start, anneal_end: shares of the training until which, and from which on, all orders are random or raster.
        init: ``published``, or ``local``: weights as large as their inputs want, which small ones need to start.
        sampling: the defaults of ``generate``.
    """

    codebook_size: int | tuple[int, ...] = 1024
    num_tokens: int = 256
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    width: int = 768
    depth: int = 24
    num_heads: int = 16
    hidden_width: int = 3072
    spare_positions: int = 0
    spare_slots: int = 0
    dropout: float = 0.1
    class_dropout: float = 0.1
    anneal_start: float = 0.5
    anneal_end: float = 0.75
    init: str = "published"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_config(
            self,
            sizes=("num_tokens", "width", "depth", "num_heads", "hidden_width"),
            shares=("dropout", "class_dropout"),
        )
        if not 0.0 <= self.anneal_start <= self.anneal_end <= 1.0:
            raise ConfigError(f"0 <= anneal_start <= anneal_end <= 1; got {self.anneal_start}, {self.anneal_end}")
        if min(self.spare_positions, self.spare_slots) < 0 or self.init not in ("published", "local"):
            raise ConfigError("spare_positions and spare_slots are 0 or more, and init is published or local")


class RarBlock(nn.Module):
    """Causal attention and MLP, each shifted, scaled and gated by terms of its slot."""

    def __init__(self, config: RarConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // config.num_heads, eps=_NORM_EPS)
        self.key_norm = nn.LayerNorm(width // config.num_heads, eps=_NORM_EPS)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width, config.hidden_width)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = nn.Linear(width, _TERMS * width)

    def forward(
        self, x: Tensor, terms: Tensor, cache: KVCache | None = None, layer: int = 0, mask: Tensor | None = None
    ) -> Tensor:
        """[B, n, D], with terms [B, n, 6 D] -> [B, n, D]; with a cache, ``x`` comes after what it holds of this ``layer``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = terms.chunk(_TERMS, dim=-1)
        dropout = self.dropout.p if self.training else 0.0
        qkv = self.qkv(torch.addcmul(shift1, self.norm1(x), 1 + scale1)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, n, D / heads]
        query, key = self.query_norm(query), self.key_norm(key)
        out = causal_attention(query, key, value, cache, layer=layer, mask=mask, dropout=dropout)
        out = self.proj(out.transpose(1, 2).flatten(2))
        x = torch.addcmul(x, gate1, self.dropout(out) if dropout else out)
        out = self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))
        return torch.addcmul(x, gate2, self.dropout(out) if dropout else out)


class Rar(ClassConditions, SoftmaxGenerator):
    """A class-conditional causal transformer that is told which token comes next."""

    family = "rar"
    config_class = RarConfig
    config: RarConfig

    def __init__(self, config: RarConfig) -> None:
        super().__init__(config)
        width, slots = config.width, config.num_tokens + _START
        # Ids, one that is never read (a mask, in the family it comes from), classes, the null class.
        self.embed = nn.Embedding(config.vocab_size + config.num_classes + 2, width)
        self.start_embed = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, slots + config.spare_positions, width))
        self.target_embed = nn.Parameter(torch.empty(1, slots + config.spare_positions, width))
        self.slot_embed = nn.Parameter(torch.empty(1, slots + config.spare_slots, width))
        self.blocks = nn.ModuleList(RarBlock(config) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.vocab_size)
        self.gradient_checkpointing = False
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        local = self.config.init == "local"
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "modulation" in name:
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                table = "embed" in name
                std = (0.5 if table else parameter.shape[-1] ** -0.5) if local else _INIT_STD
                nn.init.trunc_normal_(parameter, std=std, a=-2.0, b=2.0)
        if local:  # so that the first pictures are of the classes, and the stream keeps its size whatever the depth
            for block in self.blocks:
                block.modulation.bias.unflatten(0, (_TERMS, -1))[[2, 5]] = (2 * self.config.depth) ** -0.5

    def forward(
        self,
        ids: Tensor,
        condition: Any = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The mean negative log-likelihood of a token, in nats, in the orders of this moment; see ``Generator.forward``."""
        condition = self._for_rows(self.encode_condition(None) if condition is None else condition, len(ids))
        orders = None
        if self.training:
            if self.guidable:
                hidden = uniform_of(ids[:, 0], sample_seeds) < self.config.class_dropout
                condition = self.hide_conditions(condition, hidden)
            orders = self.draw_orders(ids, lengths, sample_seeds, progress)
            ids = ids.gather(1, orders)
        return self._loss(self.states(ids, condition, orders=orders), ids, lengths)

    def random_ratio(self, progress: float) -> float:
        """The share of rows in random order when this share of the training is done: 1, then linearly down to 0."""
        start, end = self.config.anneal_start, self.config.anneal_end
        if progress <= start:
            return 1.0
        return max(0.0, 1.0 - (progress - start) / (end - start)) if end > start else 0.0

    def draw_orders(self, ids: Tensor, lengths: Tensor | None, sample_seeds: Tensor | None, progress: float) -> Tensor:
        """Which position comes k-th, int64 [B, L]: random or raster, row by row; positions past a row's length come last."""
        length = ids.shape[1]
        draws = uniforms_of(ids[:, 0], length + 2, sample_seeds)  # the first one is the class's
        random = draws[:, 1:2] < self.random_ratio(progress)
        raster = torch.arange(length, device=ids.device)
        keys = torch.where(random, draws[:, 2:], (raster / length).to(draws.dtype))
        if lengths is not None:
            keys = keys + (raster >= lengths[:, None])
        return keys.argsort(dim=1, stable=True)

    def states(self, ids: Tensor, condition: Tensor, *, orders: Tensor | None = None, last: bool = False) -> Tensor:
        """The states [B, L, D] that predict each of the ids [B, L], in one pass without a cache.

        Args:
            ids: in the order of generation.
            condition: class numbers [B].
            orders: int64 [B, L], the position of each of them; None is raster order.
            last: also the state of the last id, which nothing follows: [B, L + 1, D].
        """
        length = ids.shape[1]
        if orders is None:
            orders = torch.arange(length, device=ids.device).expand(len(ids), -1)
        places = orders + _START
        count = length if last else length - 1
        target = F.pad(self.target_embed[0, places], (0, 0, 0, 1))  # nothing comes after the last one
        tokens = self.embed(ids[:, :count]) + self.pos_embed[0, places[:, :count]] + target[:, 1 : count + 1]
        x = torch.cat([self._prefix(condition, target[:, :1]), tokens], dim=1)
        conditions = self._class(condition)[:, None] + self.slot_embed[:, : x.shape[1]]
        return self._run(x, self._modulate(conditions))[:, 1:]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def new_cache(self, num_rows: int, *, dtype: torch.dtype | None = None, static: bool | None = None) -> KVCache:
        """An empty cache; see ``Gpt.new_cache``."""
        config = self.config
        return self._make_cache(
            num_rows,
            depth=config.depth,
            num_heads=config.num_heads,
            head_dim=config.width // config.num_heads,
            dtype=dtype,
            static=static,
            condition_length=_START,
        )

    def read_condition(self, condition: Tensor, cache: KVCache) -> Tensor:
        classes, rows = condition.unique(return_inverse=True)
        cache.keep(class_label=condition, class_row=rows)
        cache.memo["classes"] = classes
        first = self.target_embed[:, _START : _START + 1].expand(len(condition), -1, -1)
        return self._advance(self._prefix(condition, first), cache)[:, -1]

    def read_tokens(self, ids: Tensor, start: int, cache: KVCache) -> Tensor:
        del start  # the cache knows
        slots = cache.positions(ids.shape[1])
        following = slice(slots.start + 1, slots.stop + 1) if isinstance(slots, slice) else slots + 1
        return self._advance(self.embed(ids) + self.pos_embed[:, slots] + self.target_embed[:, following], cache)

    def read_on(self, x: Tensor, cache: KVCache) -> Tensor:
        return self._run(x, self._terms(cache, x.shape[1]), cache)

    def _class(self, labels: Tensor) -> Tensor:
        """[B] -> [B, D]; -1 is the null class, which has the last row."""
        return self.embed(labels.remainder(self.config.num_classes + 1) + self.config.vocab_size + 1)

    def _prefix(self, labels: Tensor, first_target: Tensor) -> Tensor:
        """The start and the class, which predicts the first token, [B, 2, D]."""
        start = self.start_embed.expand(len(labels), -1, -1)
        classes = self._class(labels)[:, None] + first_target
        return torch.cat([start, classes], dim=1) + self.pos_embed[:, :_START]

    def _modulate(self, conditions: Tensor) -> list[Tensor]:
        """[..., D] -> the terms of every block [..., 6 D], and of the last norm [..., 2 D]."""
        conditions = F.silu(conditions)
        return [layer.modulation(conditions) for layer in (*self.blocks, self)]

    def _terms(self, cache: KVCache, count: int) -> Sequence[Tensor]:
        """Terms of the next slots of every row.

        They are functions of class and slot alone, so they are computed for each class that there is, many slots at a time:
        the weights of the modulation, a third of the model, are read once for all of these.
        """
        slots = cache.positions(count)
        if cache.static:
            return self._modulate(self._class(cache.context["class_label"])[:, None] + self.slot_embed[:, slots])
        memo, classes = cache.memo, cache.memo["classes"]
        if not ("terms" in memo and memo["first"] <= slots.start and slots.stop <= memo["end"]):
            size = (_TERMS * self.config.depth + 2) * self.config.width * self.slot_embed.element_size() * len(classes)
            last = self.config.num_tokens + _START - 1  # the slot of the last token is never read
            memo["first"], memo["end"] = slots.start, max(slots.stop, min(last, slots.start + _MEMO_BYTES // size))
            ahead = self.slot_embed[:, memo["first"] : memo["end"]]
            memo["terms"] = self._modulate(self._class(classes)[:, None] + ahead)
        near = slice(slots.start - memo["first"], slots.stop - memo["first"])
        rows = cache.context["class_row"]
        return [terms[rows, near] for terms in memo["terms"]]

    def _run(self, x: Tensor, terms: Sequence[Tensor], cache: KVCache | None = None) -> Tensor:
        mask = None if cache is None else cache.mask(x.shape[1])
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, terms[layer], use_reentrant=False)
            else:
                x = block(x, terms[layer], cache, layer, mask)
        scale, shift = terms[-1].chunk(2, dim=-1)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS), 1 + scale)
