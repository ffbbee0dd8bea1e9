"""Captions as conditions: features of Flan-T5's encoder (arXiv:2210.11416), or precomputed ones, with their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import CheckpointError, VistokError, require

# The house's own: for recipes and tests that have no weights, and no time for large ones.
_TINY = {"vocab_size": 384, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_RANDOM_SEED = 0


@dataclass(frozen=True)
class TextCondition:
    """Features of captions, one row a caption.

    Attributes:
        hidden: the text encoder's last states, [B, n, D].
        mask: bool [B, n], True at words; at least one in every row.
        null_hidden, null_mask: of the empty caption, [1, m, D] and [1, m], which guidance leads away from;
            None where it is not needed, or is to be computed by the text encoder.
    """

    hidden: Tensor
    mask: Tensor
    null_hidden: Tensor | None = None
    null_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.hidden.ndim != 3 or self.mask.shape != self.hidden.shape[:2] or not self.hidden.is_floating_point():
            raise VistokError(
                f"features of captions are floats [B, n, D] with a mask [B, n], got {self.hidden.dtype} "
                f"{list(self.hidden.shape)} and {list(self.mask.shape)}"
            )
        if (self.null_hidden is None) != (self.null_mask is None):
            raise VistokError("the empty caption is given by null_hidden and null_mask together, or not at all")
        object.__setattr__(self, "mask", self.mask.bool())
        if not len(self.hidden) or not bool(self.mask.any(dim=1).all()):
            raise VistokError(
                "every caption has at least one word that its mask lets through, and there is at least one"
            )

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Tensor) -> TextCondition:
        rows = rows.to(self.device)
        return TextCondition(self.hidden[rows], self.mask[rows], self.null_hidden, self.null_mask)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.hidden.device

    def to(self, device: torch.device, dtype: torch.dtype) -> TextCondition:
        """On another device, the features in another type."""
        null = (
            (None, None)
            if self.null_hidden is None
            else (self.null_hidden.to(device, dtype), self.null_mask.to(device))
        )
        return TextCondition(self.hidden.to(device, dtype), self.mask.to(device), *null)

    def null(self) -> TextCondition:
        """The empty caption for every row; it has to be there."""
        if self.null_hidden is None:
            raise VistokError("these features have no empty caption; give null_hidden and null_mask")
        rows = (len(self), -1)
        hidden, mask = self.null_hidden.expand(*rows, -1), self.null_mask.expand(*rows)
        return TextCondition(hidden, mask, self.null_hidden, self.null_mask)

    @staticmethod
    def cat(first: TextCondition, second: TextCondition) -> TextCondition:
        """The rows of both, padded to the longer one's length."""
        longest = max(first.hidden.shape[1], second.hidden.shape[1])
        parts = [part.padded(longest) for part in (first, second)]
        hidden, mask = (torch.cat([getattr(part, name) for part in parts]) for name in ("hidden", "mask"))
        return TextCondition(hidden, mask, first.null_hidden, first.null_mask)

    def padded(self, length: int) -> TextCondition:
        """Zeros, masked, up to ``length``."""
        more = length - self.hidden.shape[1]
        if more == 0:
            return self
        return TextCondition(
            F.pad(self.hidden, (0, 0, 0, more)), F.pad(self.mask, (0, more)), self.null_hidden, self.null_mask
        )


class T5Features:
    """Captions to the last states of a T5 encoder.

    It is no module: the generator's checkpoint does not have its weights.

    Args:
        encoder: gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        tokenize: transformers' tokenizer of it.
        max_length: captions are cut at this many tokens.
    """

    def __init__(self, encoder: nn.Module, tokenize: Callable[..., dict[str, Tensor]], *, max_length: int) -> None:
        self.encoder, self.tokenize, self.max_length = encoder.eval().requires_grad_(False), tokenize, max_length

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions (longer ones are cut; "" is fine) -> states [B, n, D] and mask bool [B, n]; equal ones are read once."""
        device = next(self.encoder.parameters()).device
        different = list(dict.fromkeys(captions))
        words = self.tokenize(
            different, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = words["input_ids"].to(device), words["attention_mask"].to(device)
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.tensor([different.index(caption) for caption in captions], device=device)
        return states[rows], mask.bool()[rows]


@lru_cache(maxsize=2)
def t5_features(name: str, max_length: int, device: torch.device) -> T5Features:
    """Load a text encoder by transformers, from its cache, a folder or the network; it is kept for the next call.

    Args:
        name: transformers' name of a T5 encoder; or ``tiny``: 64 channels wide, with random weights that are the same every time, and
            bytes for words.
        max_length: captions are cut at this many tokens.
        device: where it works.
    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: the weights are not to be had.
    """
    transformers = require("transformers", extra="text", purpose="reading captions")
    if name == "tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            encoder: Any = transformers.T5EncoderModel(transformers.T5Config(**_TINY))
        return T5Features(encoder.to(device), transformers.ByT5Tokenizer(), max_length=max_length)
    try:
        encoder = transformers.T5EncoderModel.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the text encoder {name} cannot be loaded ({str(error).splitlines()[0]}); fetch it once where there is a "
            "network, or give features: vistok.generate.TextCondition"
        ) from error
    return T5Features(encoder.to(device), tokenizer, max_length=max_length)
