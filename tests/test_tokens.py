"""``Tokens``: contract and properties. Their files are in ``test_token_file.py``."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokens import make_ids, make_latents, token_batches

from vistok.errors import VistokError
from vistok.tokens import Tokens

# The object


def test_constructor_fills_in_and_normalises() -> None:
    tokens = Tokens(torch.tensor([[5, 6, 7], [8, 9, -3]], dtype=torch.int32), lengths=[3, 2], codebook_size=[4, 8])
    assert tokens.ids.dtype == tokens.lengths.dtype == torch.int64
    assert tokens.ids.tolist() == [[5, 6, 7], [8, 9, 0]]  # what lies past a length is not looked at
    assert tokens.codebook_size == (4, 8) and tokens.vocab_size == 32
    assert (len(tokens), tokens.num_rows, tokens.num_tokens, tokens.is_continuous) == (2, 2, 3, False)
    assert tokens.mask().tolist() == [[True, True, True], [True, True, False]]
    assert Tokens(torch.zeros(2, 4, dtype=torch.int64)).lengths.tolist() == [4, 4]


def test_latents_past_a_length_become_zero_even_if_nan() -> None:
    latents = torch.ones(1, 3, 2)
    latents[0, 1:] = torch.nan
    tokens = Tokens(latents=latents, lengths=[1])
    assert tokens.is_continuous and tokens.latents.tolist() == [[[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]


def test_input_tensors_are_not_changed() -> None:
    ids = torch.tensor([[1, 2]])
    Tokens(ids, lengths=[1]).truncate(0)
    assert ids.tolist() == [[1, 2]]


IDS = torch.zeros(2, 3, dtype=torch.int64)
BAD = {
    "neither": ({}, "exactly one"),
    "both": ({"ids": IDS, "latents": torch.zeros(2, 3, 1)}, "exactly one"),
    "a list": ({"ids": [[1, 2]]}, "got list"),
    "flat": ({"ids": IDS[0]}, r"\[3\]"),
    "fractional ids": ({"ids": IDS.float()}, "float32"),
    "bool ids": ({"ids": IDS.bool()}, "bool"),
    "whole latents": ({"latents": IDS[..., None]}, "int64"),
    "flat latents": ({"latents": torch.zeros(2, 3)}, r"\[2, 3\]"),
    "id too large": ({"ids": IDS + 7, "codebook_size": 7}, r"\[0, 7\), got 7 to 7"),
    "negative id": ({"ids": IDS - 1}, "got -1"),
    "length too large": ({"ids": IDS, "lengths": [4, 0]}, "from 0 to 3 for each of 2"),
    "negative length": ({"ids": IDS, "lengths": [3, -1]}, "from -1 to 3"),
    "lengths of other rows": ({"ids": IDS, "lengths": [1]}, r"\[1\]"),
    "fractional lengths": ({"ids": IDS, "lengths": [1.0, 2.0]}, "float32"),
    "ragged lengths": ({"ids": IDS, "lengths": [[1], [2, 3]]}, "whole numbers"),
    "no codebook": ({"ids": IDS, "codebook_size": 0}, "from 1 to"),
    "empty codebook": ({"ids": IDS, "codebook_size": ()}, "from 1 to"),
    "fractional codebook": ({"ids": IDS, "codebook_size": 8.0}, "8.0"),
    "enormous codebook": ({"ids": IDS, "codebook_size": (2**40, 2**40)}, "2\\^62"),
    "codebook of latents": ({"latents": torch.zeros(2, 3, 1), "codebook_size": 8}, "no codebook"),
    "name": ({"ids": IDS, "family": None}, "family is a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(VistokError, match=message):
        Tokens(**arguments)


def test_all_but_ids_are_keyword_only_and_fields_are_frozen() -> None:
    with pytest.raises(TypeError):
        Tokens(IDS, [3, 3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tokens(IDS).family = "other"


def test_unknown_codebook_is_an_error_only_where_it_is_needed(tmp_path: Path) -> None:
    tokens = Tokens(IDS)
    assert tokens.truncate(1).num_tokens == 1
    for use in (lambda: tokens.vocab_size, tokens.bits, lambda: tokens.save(tmp_path / "a.vtk")):
        with pytest.raises(VistokError, match="replace"):
            use()
    assert tokens.replace(codebook_size=2).bits().tolist() == [3.0, 3.0]
    with pytest.raises(VistokError, match="continuous"):
        _ = make_latents([1]).vocab_size


def test_truncate_takes_one_length_or_one_a_row() -> None:
    tokens = make_ids([4, 2, 0])
    assert tokens.truncate(3).lengths.tolist() == [3, 2, 0]
    assert tokens.truncate(3).num_tokens == 3
    assert tokens.truncate(100) == tokens
    mixed = tokens.truncate(torch.tensor([1, 2, 3]))
    assert mixed.lengths.tolist() == [1, 2, 0] and mixed.num_tokens == 2
    assert mixed.ids[0].tolist() == [int(tokens.ids[0, 0]), 0]
    assert tokens.truncate(0).ids.shape == (3, 0)
    for bad in (-1, 1.5, [1, 2], [[1, 2, 3]], "two"):
        with pytest.raises(VistokError):
            tokens.truncate(bad)


def test_truncate_keeps_gradients() -> None:
    latents = torch.ones(2, 3, 1, requires_grad=True)
    Tokens(latents=latents, lengths=[3, 1]).truncate(2).latents.sum().backward()
    assert latents.grad.flatten().tolist() == [1, 1, 0, 1, 0, 0]


def test_pad_refuses_to_cut() -> None:
    assert make_ids([2]).pad(4).num_tokens == 4
    with pytest.raises(VistokError, match="use truncate"):
        make_ids([3]).pad(2)


def test_rows_are_chosen_as_numpy_does() -> None:
    tokens = make_ids([1, 2, 3])
    choices = [0, -1, np.int64(2), torch.tensor(1), [2, 0], (1, 1), [], slice(1, None), slice(None, None, -1)]
    for rows in [*choices, torch.tensor([True, False, True]), torch.tensor([-1, 0], dtype=torch.int32)]:
        wanted = np.atleast_1d(np.arange(3)[list(rows) if isinstance(rows, tuple) else rows])
        assert tokens[rows].lengths.tolist() == (wanted + 1).tolist()
        assert tokens[rows].num_tokens == 3
    for rows in (3, -4, [0, 3], 0.5, torch.tensor([[0]]), torch.tensor([True])):
        with pytest.raises(IndexError):
            tokens[rows]
    assert [len(row) for row in tokens] == [1, 1, 1]


def test_cat_pads_and_refuses_strangers() -> None:
    a, b = (make_ids([n], seed=n, family="titok", model="m", weight_hash="h") for n in (1, 3))
    joined = Tokens.cat(iter([a, b]))
    assert joined.lengths.tolist() == [1, 3] and joined.weight_hash == "h" and joined[1] == b
    assert Tokens.cat([a, b.replace(weight_hash="other")]).weight_hash == ""
    changes = [{"family": "flextok"}, {"model": "n"}, {"codebook_size": 8192}, {"codebook_size": (64, 64)}]
    for stranger in [*(b.replace(**change) for change in changes), make_latents([1])]:
        with pytest.raises(VistokError, match="cannot join tokens of different"):
            Tokens.cat([a, stranger])
    with pytest.raises(VistokError, match="channels"):
        Tokens.cat([make_latents([1], 2), make_latents([1], 3)])
    with pytest.raises(VistokError, match="at least one"):
        Tokens.cat([])


def test_split_sizes() -> None:
    assert [len(part) for part in make_ids([1] * 5).split(2)] == [2, 2, 1]
    assert make_ids([]).split() == []
    with pytest.raises(VistokError, match="got 0"):
        make_ids([1]).split(0)


def test_equality_ignores_names_and_padding_only() -> None:
    tokens = make_ids([3, 2])
    assert tokens == tokens.replace(family="titok", weight_hash="x").pad(9)
    assert tokens != tokens.replace(codebook_size=8192)
    assert tokens != tokens.replace(lengths=[3, 1])
    assert tokens != tokens.replace(ids=tokens.ids.flip(0), lengths=[2, 3])
    assert tokens != make_ids([3])
    assert tokens != "tokens" and tokens != make_latents([3, 2])
    half = make_latents([2], dtype=torch.float16)
    assert half == half.replace(latents=half.latents.float())
    with pytest.raises(TypeError, match="unhashable"):
        hash(tokens)


def test_bits() -> None:
    expected = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 4096: 12, 4097: 13, (8, 5, 5, 5): 10, 2**62: 62}
    for codebook, bits in expected.items():
        assert make_ids([5, 0], codebook).bits().tolist() == [5 * bits, 0]
    assert make_ids([1]).bits().dtype == torch.float64
    for dtype, bits in ((torch.float32, 32), (torch.bfloat16, 32), (torch.float16, 16)):
        assert make_latents([4, 1], 3, dtype).bits().tolist() == [4 * 3 * bits, 3 * bits]


def test_repr_is_short_and_copies_work() -> None:
    tokens = make_ids([4, 2], model="titok_s128.imagenet")
    assert repr(tokens) == "Tokens(ids [2, 4], lengths 2..4, codebook 4096, titok_s128.imagenet)"
    assert copy.deepcopy(tokens) == tokens.to("cpu") == tokens


# Properties


@given(token_batches(), st.integers(0, 12))
def test_truncate_undoes_pad(tokens: Tokens, extra: int) -> None:
    padded = tokens.pad(tokens.num_tokens + extra)
    assert padded == tokens and padded.num_tokens == tokens.num_tokens + extra
    assert padded.truncate(padded.num_tokens) == tokens


@given(token_batches(), st.integers(0, 10), st.integers(0, 10))
def test_truncations_compose(tokens: Tokens, a: int, b: int) -> None:
    assert tokens.truncate(a).truncate(b) == tokens.truncate(min(a, b))
    cut = tokens.truncate(a)
    assert cut.lengths.tolist() == [min(length, a) for length in tokens.lengths.tolist()]
    assert (cut.ids[~cut.mask()] == 0).all()
    for row in range(len(tokens)):
        length = int(cut.lengths[row])
        assert cut.ids[row, :length].tolist() == tokens.ids[row, :length].tolist()


@given(token_batches().filter(len), st.integers(1, 6), st.randoms(use_true_random=False))
def test_cat_undoes_split(tokens: Tokens, size: int, random: Any) -> None:
    parts = tokens.split(size)
    assert Tokens.cat(parts) == tokens
    assert Tokens.cat([part.truncate(part.num_tokens) for part in parts]) == tokens
    order = list(range(len(tokens)))
    random.shuffle(order)
    assert tokens[order][[order.index(row) for row in range(len(tokens))]] == tokens
