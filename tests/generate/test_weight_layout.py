from __future__ import annotations

import pytest
import torch
from torch import nn

from vistok.generate import weight_layout
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.weight_layout import few_rows


@pytest.fixture(autouse=True)
def with_mkl(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def test_values_stay_and_what_was_there_comes_back() -> None:
    layer = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    weight, norm = layer[0].weight, layer[1].weight
    x = torch.randn(2, 3)
    before = layer(x)
    with pytest.raises(KeyboardInterrupt), few_rows(layer, 2, 256):
        assert layer[0].weight is not weight and layer[0].weight.t().is_contiguous()
        assert torch.equal(layer[0].weight, weight) and layer[1].weight is norm
        torch.testing.assert_close(layer(x), before)
        raise KeyboardInterrupt
    assert layer[0].weight is weight and weight.is_contiguous() and weight.requires_grad


@pytest.mark.parametrize(("rows", "passes", "dtype"), [(3, 256, "float32"), (1, 8, "float32"), (1, 256, "bfloat16")])
def test_left_alone_where_nothing_is_won(rows, passes, dtype) -> None:
    layer = nn.Linear(3, 5, dtype=getattr(torch, dtype))
    weight = layer.weight
    with few_rows(layer, rows, passes):
        assert layer.weight is weight


def test_too_large_to_be_held_twice(monkeypatch) -> None:
    monkeypatch.setattr(weight_layout, "_MOST_BYTES", 59)
    layer = nn.Linear(3, 5)
    weight = layer.weight
    with few_rows(layer, 1, 256):
        assert layer.weight is weight


def test_generation_chooses_the_same_tokens(monkeypatch) -> None:
    torch.manual_seed(0)
    model = Gpt(
        GptConfig(codebook_size=16, num_tokens=130, num_classes=2, width=16, depth=2, num_heads=2, init="local")
    ).eval()
    seen = []
    read = model.read_tokens

    def watched(*args):
        seen.append(model.head.weight.is_contiguous())
        return read(*args)

    monkeypatch.setattr(model, "read_tokens", watched)
    turned = model.generate(1, seeds=3, cfg_scale=1.5, return_log_probs=True)
    assert seen and not any(seen)
    monkeypatch.setattr(weight_layout, "_MOST_ROWS", 0)
    plain = model.generate(1, seeds=3, cfg_scale=1.5, return_log_probs=True)
    assert torch.equal(turned.tokens.ids, plain.tokens.ids)
    torch.testing.assert_close(turned.log_probs, plain.log_probs)
