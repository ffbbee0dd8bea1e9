"""Tokens as digits: a product codebook's id is read, embedded and predicted one factor at a time.

With FSQ levels 8 x 8 x 8 x 8, four heads of 8 logits stand for a softmax over 4,096 ids, and share
what they learn between ids that have digits in common. The first digit changes fastest, as in
``FiniteScalarQuantizer``. A plain codebook is the case of one digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.generate.sampling import Drawn, SamplingConfig, sample_logits


class DigitCode(nn.Module):
    """Ids to digits and back.

    Args:
        levels: the number of values of each digit, first digit fastest.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_digits = len(levels)
        self.vocab_size = math.prod(levels)
        self.num_values = sum(levels)
        place_values = [math.prod(levels[:digit]) for digit in range(len(levels))]
        offsets = [sum(levels[:digit]) for digit in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int64), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64), persistent=False)

    def split(self, ids: Tensor) -> Tensor:
        """Ids [...] -> digits [..., D]."""
        return (ids[..., None] // self.place_values) % self.levels

    def join(self, digits: Tensor) -> Tensor:
        """Digits [..., D] -> ids [...]."""
        return (digits * self.place_values).sum(dim=-1)


class DigitEmbedding(nn.Module):
    """The embedding of a token is the sum of the embeddings of its digits."""

    def __init__(self, code: DigitCode, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(code.num_values, width)

    def forward(self, digits: Tensor, code: DigitCode) -> Tensor:
        """Digits [..., D] -> [..., W]."""
        return self.table(digits + code.offsets).sum(dim=-2)


class DigitHead(nn.Module):
    """Logits of each digit of the next token.

    Either all digits at once, independent of each other given the prefix, or each given the digits
    before it too, through a small MLP a digit: then the token's distribution is exact, and digits that
    are likely one by one but not together are not drawn together.

    Args:
        code: the digits.
        width: W, of the hidden states.
        autoregressive: predict digits given the earlier ones of the same token.
    """

    def __init__(self, code: DigitCode, width: int, *, autoregressive: bool) -> None:
        super().__init__()
        self.code = code
        self.autoregressive = autoregressive and code.num_digits > 1
        most = int(code.levels.max())
        impossible = torch.arange(most) >= code.levels[:, None]  # [D, K]; uneven levels are padded
        self.register_buffer("impossible", impossible, persistent=False)
        self.uneven = bool(impossible.any())
        if self.autoregressive:
            digits = code.num_digits
            self.earlier = DigitEmbedding(code, width)
            self.hidden_weight = nn.Parameter(torch.empty(digits, width, width))
            self.hidden_bias = nn.Parameter(torch.zeros(digits, 1, width))
            self.out_weight = nn.Parameter(torch.empty(digits, width, most))
            self.out_bias = nn.Parameter(torch.zeros(digits, 1, most))
        else:
            self.out = nn.Linear(width, code.num_digits * most)

    def init_weights(self) -> None:
        """Unit variance going in gives unit variance going out; earlier digits weigh as much as the state."""
        if self.autoregressive:
            width = self.hidden_weight.shape[1]
            nn.init.normal_(self.earlier.table.weight, std=1.0)
            for weight in (self.hidden_weight, self.out_weight):
                nn.init.normal_(weight, std=width**-0.5)
        else:
            nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5)
            nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, digits: Tensor) -> Tensor:
        """Hidden states [..., W] and the digits that follow them [..., D] -> logits [..., D, K].

        K is the largest number of levels; the logits of values that a digit does not have are -inf.
        """
        if not self.autoregressive:
            return self._mask(self.out(hidden).unflatten(-1, (self.code.num_digits, -1)), slice(None))
        shape = digits.shape
        earlier = self.earlier.table((digits[..., :-1] + self.code.offsets[:-1]).flatten(0, -2).t())  # [D - 1, N, W]
        states = [hidden.flatten(0, -2)]
        for embedded in earlier:
            states.append(states[-1] + embedded)  # the state that predicts a digit has seen the ones before
        x = torch.stack(states)  # [D, N, W]
        x = F.gelu(torch.baddbmm(self.hidden_bias, x, self.hidden_weight))
        logits = torch.baddbmm(self.out_bias, x, self.out_weight).transpose(0, 1)  # [N, D, K]
        return self._mask(logits.unflatten(0, shape[:-1]), slice(None))

    def sample(
        self, hidden: Tensor, uniforms: Tensor, sampling: SamplingConfig, *, null_hidden: Tensor | None = None
    ) -> Drawn:
        """Draw one token a row.

        Args:
            hidden: [B, W].
            uniforms: [B, D], a number a digit.
            sampling: filters work on the digits' distributions, one by one.
            null_hidden: [B, W] under the null condition, when guided.
        Returns:
            Ids [B], with log-probabilities summed over the digits.
        """
        if not self.autoregressive:
            null = None if null_hidden is None else self(null_hidden, uniforms)
            drawn = sample_logits(self(hidden, uniforms), uniforms, sampling, null_logits=null)  # [B, D]
            return Drawn(self.code.join(drawn.indices), drawn.log_probs.sum(-1), drawn.draw_log_probs.sum(-1))
        states = [hidden] if null_hidden is None else [hidden, null_hidden]
        parts = []
        for digit in range(self.code.num_digits):
            logits = [self._one(state, digit) for state in states]
            part = sample_logits(
                logits[0], uniforms[:, digit], sampling, null_logits=logits[1] if len(logits) > 1 else None
            )
            parts.append(part)
            embedded = self.earlier.table(part.indices + self.code.offsets[digit])
            states = [state + embedded for state in states]
        digits = torch.stack([part.indices for part in parts], dim=-1)
        log_probs = torch.stack([part.log_probs for part in parts]).sum(dim=0)
        return Drawn(self.code.join(digits), log_probs, torch.stack([part.draw_log_probs for part in parts]).sum(dim=0))

    def next_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Logits [B, K] of the digit after ``earlier`` ones, int64 [B, n], of the next token; K is that digit's levels."""
        digit = earlier.shape[1]
        if not self.autoregressive:
            logits = self.out(hidden).unflatten(-1, (self.code.num_digits, -1))[:, digit]
        else:
            logits = self._one(hidden + self.earlier.table(earlier + self.code.offsets[:digit]).sum(dim=1), digit)
        return logits[:, : int(self.code.levels[digit])]

    def _one(self, state: Tensor, digit: int) -> Tensor:
        x = F.gelu(torch.addmm(self.hidden_bias[digit], state, self.hidden_weight[digit]))
        return self._mask(torch.addmm(self.out_bias[digit], x, self.out_weight[digit]), digit)

    def _mask(self, logits: Tensor, digit: int | slice) -> Tensor:
        return logits.masked_fill(self.impossible[digit], float("-inf")) if self.uneven else logits
