"""A small generator and its tokenizer, with random weights, for all tests of search."""

from __future__ import annotations

import pytest
import torch

from vistok.generate import DigitAR, DigitARConfig
from vistok.hub import create_model
from vistok.models.base import Tokenizer


@pytest.fixture(scope="module")
def generator() -> DigitAR:
    torch.manual_seed(0)
    return DigitAR(DigitARConfig(num_tokens=32, num_classes=5, width=32, depth=2, num_heads=2)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = create_model("titok_tiny_32.emoji")
    tokenizer.linear.fit(torch.rand(200, 3, 64, 64))
    return tokenizer
