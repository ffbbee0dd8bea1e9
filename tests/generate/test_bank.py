"""Banks of tokens as training sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from vistok.errors import DataError
from vistok.generate import DigitAR, DigitARConfig, TokenDataset, tokenize_images
from vistok.hub import create_model
from vistok.tokens import Tokens


def bank(views: int = 3) -> TokenDataset:
    ids = torch.arange(4 * views * 5).view(4 * views, 5)
    return TokenDataset(Tokens(ids=ids, lengths=[5, 4] * 2 * views, codebook_size=1000), [3, 1, 2, 0], views=views)


def test_a_sample_is_a_function_of_its_key():
    data = bank()
    assert len(data) == 4
    item = data[2, 99]
    assert item["label"] == 2 and item["index"] == 2 and item["sample_seed"] == 99
    assert torch.equal(item["ids"], data[2, 99]["ids"])
    rows = {tuple(data[2, seed]["ids"].tolist()) for seed in range(60)}
    assert rows == {tuple(row) for row in data.tokens.ids[6:9].tolist()}  # every view of the image, and no other
    assert torch.equal(data[2]["ids"], data.tokens.ids[6])


def test_batches_go_into_the_model():
    data = bank()
    model = DigitAR(DigitARConfig(codebook_size=1000, num_tokens=5, num_classes=4, width=16, depth=1, num_heads=1))
    batch = default_collate([data[index, seed] for index, seed in [(0, 5), (3, 2**62), (1, 7)]])
    out = model(batch["ids"], batch["label"], lengths=batch["length"], sample_seeds=batch["sample_seed"])
    assert out["loss"].isfinite()


def test_bad_banks():
    tokens = Tokens(ids=torch.zeros(6, 2).long(), codebook_size=4)
    with pytest.raises(DataError, match="whole number of images"):
        TokenDataset(tokens, views=4)
    with pytest.raises(DataError, match="3 images want 3 labels"):
        TokenDataset(tokens, [1, 2], views=2)
    assert TokenDataset(tokens).labels.tolist() == [-1] * 6


class Noise:
    """Images that are a function of (index, sample seed)."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(key[1])
        return {"image": torch.rand(3, 64, 64, generator=generator), "label": key[0] + 10}


def test_images_are_tokenized_in_views():
    tokenizer = create_model("titok_tiny_32.emoji")
    tokenizer.linear.fit(torch.rand(40, 3, 64, 64))
    data = tokenize_images(tokenizer, Noise(), views=2, seed=1, batch_size=4)
    assert len(data) == 3 and data.labels.tolist() == [10, 11, 12] and len(data.tokens) == 6
    assert data.tokens == tokenize_images(tokenizer, Noise(), views=2, seed=1, batch_size=5).tokens
    assert data.tokens != tokenize_images(tokenizer, Noise(), views=2, seed=2).tokens
