"""Small batches of tokens of every kind, for tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from vistok.tokens import Tokens


def make_ids(lengths: list[int], codebook_size: Any = 4096, *, seed: int = 0, **names: str) -> Tokens:
    """Random ids with these lengths; the first valid ones are the extremes 0 and K - 1."""
    vocab = math.prod(codebook_size) if isinstance(codebook_size, tuple) else codebook_size
    columns = max(lengths, default=0)
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, vocab, (len(lengths), columns), dtype=np.int64))
    if columns:
        ids[0, 0] = vocab - 1
    return Tokens(ids, lengths=lengths, codebook_size=codebook_size, **names)


def make_latents(lengths: list[int], channels: int = 3, dtype: torch.dtype = torch.float32) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(lengths), max(lengths, default=0), channels, generator=generator).to(dtype)
    return Tokens(latents=latents, lengths=lengths)


@st.composite
def token_batches(draw: st.DrawFn) -> Tokens:
    """Batches of up to 5 rows of up to 9 tokens, with padding, for any codebook size up to 2^62."""
    codebook: Any = draw(st.one_of(st.integers(1, 70), st.integers(1, 2**62), st.sampled_from([(8, 5, 5, 5), (3, 2)])))
    vocab = math.prod(codebook) if isinstance(codebook, tuple) else codebook
    lengths = draw(st.lists(st.integers(0, 9), max_size=5))
    columns = max(lengths, default=0) + draw(st.integers(0, 2))
    rows = [draw(st.lists(st.integers(0, vocab - 1), min_size=columns, max_size=columns)) for _ in lengths]
    ids = torch.tensor(rows, dtype=torch.int64).reshape(len(lengths), columns)
    return Tokens(ids, lengths=lengths, codebook_size=codebook)
