"""What generators with one softmax over all ids for the next token have in common: loss, likelihood, draws."""

from __future__ import annotations

import inspect
import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.generate.autoregressive import AutoregressiveGenerator
from vistok.generate.base import evaluating
from vistok.generate.kv_cache import KVCache, StoragePool
from vistok.generate.sampling import Drawn, SamplingConfig, sample_logits, sample_several, uniform_of
from vistok.tokens import Tokens

logger = logging.getLogger(__name__)

# So that models of one class do not share the number of programs that ``torch.compile`` makes of a function, where it can.
_APART = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


class SoftmaxGenerator(AutoregressiveGenerator):
    """An autoregressive generator whose state gives the logits of all ids.

    A family implements ``states``, ``logits`` and ``read_on``, and the reading of conditions and tokens. Its
    configuration has ``num_tokens``, ``codebook_size``, ``class_dropout`` and ``sampling``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._step: Callable[[Tensor, KVCache], Tensor] | None = None
        self._pool = StoragePool()
        self._programs: dict[tuple[Any, ...], bool] = {}

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        return self.config.codebook_size

    @property
    def draws_per_token(self) -> int:
        return 1

    @property
    def compiled(self) -> bool:
        return self._step is not None

    @property
    def guidable(self) -> bool:
        return self.conditional and self.config.class_dropout > 0

    @abstractmethod
    def states(self, ids: Tensor, condition: Any) -> Tensor:
        """The states [B, L, W] that predict each of the ids [B, L], in one pass without a cache."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """States [..., W] -> logits [..., K]."""

    @abstractmethod
    def read_on(self, x: Tensor, cache: KVCache) -> Tensor:
        """All blocks over the next positions, [B, n, W] -> [B, n, W], after what the cache holds; it is not advanced."""

    @abstractmethod
    def hide_conditions(self, condition: Any, hidden: Tensor) -> Any:
        """The conditions, with the null condition where ``hidden`` (bool [B]) is True."""

    def forward(
        self,
        ids: Tensor,
        condition: Any = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The mean negative log-likelihood of a token, in nats; see ``Generator.forward``."""
        del progress  # nothing changes in the course of its training
        condition = self._for_rows(self.encode_condition(None) if condition is None else condition, len(ids))
        if self.training and self.guidable:
            hidden = uniform_of(ids[:, 0], sample_seeds) < self.config.class_dropout
            condition = self.hide_conditions(condition, hidden)
        return self._loss(self.states(ids, condition), ids, lengths)

    def _loss(self, states: Tensor, ids: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        """The outputs of ``forward``, of states that predict ``ids``."""
        logits = self.logits(states).float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        if lengths is None:
            loss = losses.mean()
        else:
            valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            loss = (losses * valid).sum() / valid.sum().clamp_min(1)
        return {"loss": loss, "nll_per_token": loss.detach(), "bits_per_token": loss.detach() / math.log(2)}

    @torch.no_grad()
    def token_log_probs(self, tokens: Tokens, condition: Any = None) -> Tensor:
        self.check_tokens(tokens)
        encoded = self._for_rows(self.encode_condition(condition), len(tokens))
        ids = tokens.ids.to(self.device)
        with evaluating(self):
            scores = self.score_tokens(self.states(ids, encoded), ids)
        return scores * tokens.mask().to(self.device)

    def draw_tokens(
        self, hidden: Tensor, uniforms: Tensor, sampling: SamplingConfig, *, null_hidden: Tensor | None = None
    ) -> Drawn:
        logits, null = self._both_logits(hidden, null_hidden)
        return sample_logits(logits, uniforms[:, 0], sampling, null_logits=null)

    def draw_branches(
        self,
        hidden: Tensor,
        uniforms: Tensor,
        sampling: SamplingConfig,
        *,
        null_hidden: Tensor | None = None,
        replacement: bool = True,
    ) -> Drawn:
        logits, null = self._both_logits(hidden, null_hidden)
        return sample_several(logits, uniforms[..., 0], sampling, null_logits=null, replacement=replacement)

    def score_tokens(self, hidden: Tensor, ids: Tensor) -> Tensor:
        logits = self.logits(hidden).float()
        return -F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)

    def factor_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        return self.logits(hidden)

    def compile_steps(self, **options: Any) -> None:
        """Run passes of one token under ``torch.compile``; new caches are static then, so one program serves all positions.

        Args:
            options: of ``torch.compile``. By default ``mode="reduce-overhead"`` on CUDA, which replays a step as one graph.
        """
        if not options and self.device.type == "cuda":
            options = {"mode": "reduce-overhead"}
        self._step = torch.compile(self.read_on, fullgraph=True, dynamic=False, **_APART, **options)
        self._pool, self._programs = StoragePool(), {}

    def _advance(self, x: Tensor, cache: KVCache) -> Tensor:
        """``read_on``, compiled where it is, and on with the cache."""
        # The condition is read once, and maybe for fewer rows than the tokens, which would be a program of its own.
        wanted = self._step is not None and cache.static and cache.length > 0 and x.shape[1] == 1
        # What a CUDA graph gives is overwritten when it is replayed, and a rollout keeps its states while others go on.
        out = self._step(x, cache).clone() if wanted and self._has_program(cache) else self.read_on(x, cache)
        cache.advance(x.shape[1])
        return out

    def _has_program(self, cache: KVCache) -> bool:
        """Whether these sizes are among the first few, for which there are programs; more are an error of ``torch.compile``."""
        sizes = (cache.keys.shape, cache.keys.dtype, *(tensor.shape for tensor in cache.context.values()))
        if sizes not in self._programs:
            most = torch._dynamo.config.cache_size_limit
            self._programs[sizes] = sum(self._programs.values()) < most
            if not self._programs[sizes]:
                logger.warning(
                    "steps of %d rows run without a compiled program, since there are programs of %d other sizes; "
                    "generate in batches of fewer sizes, or raise torch._dynamo.config.cache_size_limit",
                    cache.num_rows,
                    most,
                )
        return self._programs[sizes]

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: the program is bound to these weights."""
        return self.__dict__ | {"_step": None, "_pool": StoragePool(), "_programs": {}}

    def _both_logits(self, hidden: Tensor, null_hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both halves read the head's weights once."""
        if null_hidden is None:
            return self.logits(hidden), None
        return self.logits(torch.cat([hidden, null_hidden])).chunk(2)

    def _make_cache(
        self,
        num_rows: int,
        *,
        depth: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype | None,
        static: bool | None,
        condition_length: int = 1,
    ) -> KVCache:
        """The condition and all tokens but the last fit; static on CUDA and for compiled steps, unless said otherwise."""
        static = self.device.type == "cuda" or self.compiled if static is None else static
        return KVCache(
            num_layers=depth,
            num_rows=num_rows,
            num_heads=num_heads,
            head_dim=head_dim,
            max_length=self.num_tokens - 1 + condition_length,
            dtype=dtype or self.dtype,
            device=self.device,
            static=static,
            pool=self._pool if static and self.compiled else None,
        )

    @staticmethod
    def _for_rows(condition: Any, num_rows: int) -> Any:
        """One condition stands for all rows."""
        if len(condition) == num_rows:
            return condition
        return condition[torch.zeros(num_rows, dtype=torch.int64, device=condition.device)]
