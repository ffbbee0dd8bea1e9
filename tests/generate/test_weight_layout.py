from __future__ import annotations

import mmap

import pytest
import torch
from torch import nn

from vistok.generate import weight_layout
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.weight_layout import few_rows

needs_packing = pytest.mark.skipif(not weight_layout._has_packing(), reason="this torch does not pack weights")


@pytest.fixture(autouse=True)
def with_mkl(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def test_one_row_reads_columns_and_what_was_there_comes_back() -> None:
    layer = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    weight, norm, narrow = layer[0].weight, layer[1].weight, layer[2].weight
    x = torch.randn(1, 3)
    before = layer(x)
    with pytest.raises(KeyboardInterrupt), few_rows(layer, 1, 256):
        assert layer[0].weight is not weight and layer[0].weight.t().is_contiguous()
        assert torch.equal(layer[0].weight, weight) and layer[1].weight is norm and layer[2].weight is narrow
        torch.testing.assert_close(layer(x), before)
        raise KeyboardInterrupt
    assert layer[0].weight is weight and weight.is_contiguous() and weight.requires_grad


@needs_packing
@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (24, 4, 3), (3,), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_several_rows_read_packed_weights(shape, bias) -> None:
    layer = nn.Linear(3, 5, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        before = layer(x)
        with pytest.raises(KeyboardInterrupt), few_rows(layer, 2, 256):
            assert "forward" in vars(layer)
            torch.testing.assert_close(layer(x), before)
            raise KeyboardInterrupt
        assert "forward" not in vars(layer) and torch.equal(layer(x), before)


@pytest.mark.parametrize(
    ("rows", "passes", "dtype"),
    [(25, 256, "float32"), (1, 8, "float32"), (2, 8, "float32"), (1, 256, "bfloat16"), (2, 256, "bfloat16")],
)
def test_left_alone_where_nothing_is_won(rows, passes, dtype) -> None:
    layer = nn.Linear(3, 5, dtype=getattr(torch, dtype))
    weight = layer.weight
    with few_rows(layer, rows, passes):
        assert layer.weight is weight and "forward" not in vars(layer)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_large_to_be_held_twice(monkeypatch, rows) -> None:
    monkeypatch.setattr(weight_layout, "_MOST_BYTES", 59)
    layer = nn.Linear(3, 5)
    weight = layer.weight
    with few_rows(layer, rows, 256):
        assert layer.weight is weight and "forward" not in vars(layer)


def test_a_torch_without_the_operators(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = nn.Linear(3, 5)
    with few_rows(layer, 2, 256):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("guidance", [1.0, pytest.param(1.5, marks=needs_packing)])
def test_generation_chooses_the_same_tokens(monkeypatch, guidance) -> None:
    torch.manual_seed(0)
    model = Gpt(
        GptConfig(codebook_size=24, num_tokens=130, num_classes=2, width=16, depth=2, num_heads=2, init="local")
    ).eval()
    seen = []
    read = model.read_tokens

    def watched(*args):
        seen.append(model.head.weight.is_contiguous() and "forward" not in vars(model.head))
        return read(*args)

    monkeypatch.setattr(model, "read_tokens", watched)
    changed = model.generate(1, seeds=3, cfg_scale=guidance, return_log_probs=True)
    assert seen and not any(seen)
    monkeypatch.setattr(weight_layout, "_MOST_ROWS", 0)
    plain = model.generate(1, seeds=3, cfg_scale=guidance, return_log_probs=True)
    assert torch.equal(changed.tokens.ids, plain.tokens.ids)
    torch.testing.assert_close(changed.log_probs, plain.log_probs)


def test_columns_follow_each_other_in_one_room(monkeypatch) -> None:
    weights = [torch.randn(5, 3), torch.randn(4, 2), torch.randn(7, 6)]
    for huge in (True, False):
        if not huge:
            monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
        columns = weight_layout._Columns(sum(weight.numel() for weight in weights))
        laid = [columns.lay(weight) for weight in weights]
        assert all(torch.equal(a, b) and a.t().is_contiguous() for a, b in zip(laid, weights, strict=True))
        assert len({x.untyped_storage().data_ptr() for x in laid}) == 1 and columns._room.numel() == 0
