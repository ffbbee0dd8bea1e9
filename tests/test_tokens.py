"""``Tokens`` and the ``.vtk`` file format: contract, properties, and what damage does."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vistok.tokens as module
from vistok.errors import TokenFileError, VistokError
from vistok.tokens import Tokens

PREAMBLE = 18  # bytes before the header


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


@given(token_batches())
def test_rows_survive_packing(tokens: Tokens) -> None:
    lengths, bits = tokens.lengths.tolist(), (tokens.vocab_size - 1).bit_length()
    rows = module._pack(tokens.ids.numpy(), lengths, bits)
    assert [len(row) for row in rows] == [math.ceil(length * bits / 8) for length in lengths]
    assert sum(map(len, rows)) * 8 - tokens.bits().sum() < 8 * len(rows) + 1
    columns = max(lengths, default=0)
    assert module._unpack(rows, lengths, bits).tolist() == tokens.ids[:, :columns].tolist()
    for row, packed in enumerate(rows):  # the format, spelt out: big-endian numbers, zeros at the end
        text = "".join(f"{value:0{bits}b}" for value in tokens.ids[row, : lengths[row]].tolist()) if bits else ""
        assert "".join(f"{byte:08b}" for byte in packed) == text.ljust(len(packed) * 8, "0")


@settings(max_examples=50)
@given(tokens=token_batches())
def test_files_return_what_was_saved(tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "property.vtk"
    tokens.save(path)
    assert Tokens.load(path) == tokens


def test_packing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make_ids([7, 3, 0, 7, 5], 1000)
    lengths = tokens.lengths.tolist()
    rows = module._pack(tokens.ids.numpy(), lengths, 10)
    monkeypatch.setattr(module, "_WORKING_BITS", 140)  # two rows at a time
    assert module._pack(tokens.ids.numpy(), lengths, 10) == rows
    assert module._unpack(rows, lengths, 10).tolist() == tokens.ids.tolist()


# Files


@pytest.mark.parametrize("codebook", [1, 2, 3, 256, 1000, 4096, 65537, (8, 8, 8, 5, 5, 5), 2**40])
def test_file_keeps_everything(tmp_path: Path, codebook: Any) -> None:
    tokens = make_ids([9, 0, 4], codebook, family="titok", model="titok_ä", weight_hash="0123")
    tokens.save(tmp_path / "a.vtk")
    loaded = Tokens.load(str(tmp_path / "a.vtk"))
    assert loaded == tokens and loaded.codebook_size == codebook and loaded.ids.dtype == torch.int64
    assert (loaded.family, loaded.model, loaded.weight_hash) == ("titok", "titok_ä", "0123")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_file_keeps_latents_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    tokens = make_latents([3, 0, 2], 5, dtype)
    tokens.save(tmp_path / "a.vtk")
    loaded = Tokens.load(tmp_path / "a.vtk")
    assert loaded == tokens and loaded.codebook_size is None
    assert loaded.latents.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    header, body = read(tmp_path / "a.vtk")
    assert len(body) * 8 == tokens.bits().sum() and header["channels"] == 5


def test_float64_latents_are_not_rounded_behind_ones_back(tmp_path: Path) -> None:
    with pytest.raises(VistokError, match="float64"):
        make_latents([1], dtype=torch.float64).save(tmp_path / "a.vtk")


@pytest.mark.parametrize("tokens", [make_ids([]), make_ids([0, 0]), make_latents([]), make_latents([0])])
def test_empty_tokens_have_files_too(tmp_path: Path, tokens: Tokens) -> None:
    tokens.save(tmp_path / "a.vtk")
    assert Tokens.load(tmp_path / "a.vtk") == tokens


def test_a_row_can_be_read_by_its_offsets(tmp_path: Path) -> None:
    tokens = make_ids([5, 2, 7], 1000)
    tokens.save(tmp_path / "a.vtk")
    header, body = read(tmp_path / "a.vtk")
    for row in range(3):
        start, end = header["offsets"][row : row + 2]
        assert zlib.crc32(body[start:end]) == header["checksums"][row]
        ids = module._unpack([body[start:end]], [header["lengths"][row]], 10)
        assert ids[0].tolist() == tokens.ids[row, : header["lengths"][row]].tolist()


def test_saving_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vtk"
    make_ids([3]).save(path)
    before = path.read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(TokenFileError, match="no space left"):
            make_ids([9]).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.vtk"]
    make_ids([9]).save(path)
    assert Tokens.load(path) == make_ids([9]) and os.listdir(tmp_path) == ["a.vtk"]


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing" / "a.vtk", tmp_path / "file" / "a.vtk", tmp_path):
        with pytest.raises(TokenFileError, match="cannot write"):
            make_ids([1]).save(path)
        with pytest.raises(TokenFileError, match="cannot read"):
            Tokens.load(path)


# Damage


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and rows of a sound file."""
    content = path.read_bytes()
    size = struct.unpack_from("<8sHI", content)[2]
    return json.loads(content[PREAMBLE : PREAMBLE + size]), content[PREAMBLE + size :]


def write(path: Path, header: bytes, body: bytes, *, version: int = 1) -> None:
    """A file with right checksums, whatever its header says."""
    start = struct.pack("<8sHI", b"VISTOKV\x1a", version, len(header))
    path.write_bytes(start + struct.pack("<I", zlib.crc32(start + header)) + header + body)


SOUND = {
    "ids": make_ids([3, 0, 2], 1000, family="titok", model="m", weight_hash="h"),
    "one word": make_ids([3, 1], 1),
    "fp32": make_latents([2, 1], 2),
    "fp16": make_latents([2, 1], 2, torch.float16),
    "no rows": make_ids([]),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.vtk"
    SOUND[name].save(path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(TokenFileError, match=r"a\.vtk"):
            Tokens.load(path)
    for more in (b"\0", content):
        path.write_bytes(content + more)
        with pytest.raises(TokenFileError):
            Tokens.load(path)


@pytest.mark.parametrize("name", SOUND)
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.vtk"
    SOUND[name].save(path)
    content = path.read_bytes()
    header = range(PREAMBLE, len(content) - len(read(path)[1]))
    for bit in range(len(content) * 8):
        if bit // 8 in header and bit % 8 != bit // 8 % 8:
            continue  # one bit of each byte is enough in the longest part
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(TokenFileError, match=r"a\.vtk"):
            Tokens.load(path)


@settings(max_examples=100)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: b"VISTOKV\x1a" + rest)))
def test_foreign_files_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign.vtk"
    path.write_bytes(content)
    with pytest.raises(TokenFileError):
        Tokens.load(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    torch.save({"ids": IDS}, tmp_path / "a.vtk")
    with pytest.raises(TokenFileError, match="not a vistok token file"):
        Tokens.load(tmp_path / "a.vtk")


def test_newer_versions_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.vtk", b"{}", b"", version=2)
    with pytest.raises(TokenFileError, match="version 2"):
        Tokens.load(tmp_path / "a.vtk")


KEYS = "kind channels lengths offsets checksums codebook_size family model weight_hash".split()
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another kind": lambda h: h.update(kind="int8"),
    "a kind that is no name": lambda h: h.update(kind=["ids"]),
    "latents with a codebook": lambda h: h.update(kind="fp32"),
    "null codebook": lambda h: h.update(codebook_size=None),
    "codebook of nothing": lambda h: h.update(codebook_size=0),
    "codebook as text": lambda h: h.update(codebook_size="1000"),
    "codebook of other bits": lambda h: h.update(codebook_size=5000),
    "id outside the codebook": lambda h: h.update(codebook_size=999),
    "negative length": lambda h: h.update(lengths=[3, -1, 3]),
    "fractional length": lambda h: h.update(lengths=[3.0, 0, 2]),
    "length as bool": lambda h: h.update(lengths=[3, False, 2]),
    "infinite length": lambda h: h.update(lengths=[3, 0, math.inf]),
    "lengths as a number": lambda h: h.update(lengths=3),
    "longer row": lambda h: h.update(lengths=[4, 0, 2]),
    "fewer lengths": lambda h: h.update(lengths=[3, 0]),
    "other offsets": lambda h: h.update(offsets=[0, 4, 5, 7]),
    "fewer offsets": lambda h: h.update(offsets=[0, 4, 4]),
    "fewer checksums": lambda h: h.update(checksums=h["checksums"][:2]),
    "other checksum": lambda h: h.update(checksums=[0, *h["checksums"][1:]]),
    "channels as text": lambda h: h.update(channels="0"),
    "model as a number": lambda h: h.update(model=3),
    **{f"no {key}": lambda h, key=key: h.pop(key) for key in KEYS},
}


@pytest.mark.parametrize("change", CHANGES)
def test_headers_that_make_no_sense(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.vtk"
    SOUND["ids"].save(path)
    header, body = read(path)
    write(path, json.dumps(header).encode(), body)
    assert Tokens.load(path) == SOUND["ids"]  # so it is the change that is refused
    CHANGES[change](header)
    write(path, json.dumps(header).encode(), body)
    with pytest.raises(TokenFileError, match=r"a\.vtk"):
        Tokens.load(path)


@pytest.mark.parametrize("header", [b"", b"null", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_headers_that_are_no_objects(tmp_path: Path, header: bytes) -> None:
    write(tmp_path / "a.vtk", header, b"")
    with pytest.raises(TokenFileError, match=r"a\.vtk"):
        Tokens.load(tmp_path / "a.vtk")


def test_header_length_does_not_allocate(tmp_path: Path) -> None:
    path = tmp_path / "a.vtk"
    path.write_bytes(struct.pack("<8sHII", b"VISTOKV\x1a", 1, 2**32 - 1, 0) + b"{}")
    with pytest.raises(TokenFileError, match="does not fit"):
        Tokens.load(path)


GREEDY: list[dict[str, Any]] = [
    {"codebook_size": 1, "lengths": [10**12]},
    {"codebook_size": 1, "lengths": [10**30]},
    {"kind": "fp32", "codebook_size": None, "lengths": [10**12]},
    {"kind": "fp16", "codebook_size": None, "lengths": [0], "channels": 10**30},
]


@pytest.mark.parametrize("changes", GREEDY)
def test_small_files_cannot_ask_for_gigabytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    names = {"family": "", "model": "", "weight_hash": ""}
    header = {"kind": "ids", "channels": 0, "offsets": [0, 0], "checksums": [0], **names, **changes}
    write(tmp_path / "a.vtk", json.dumps(header).encode(), b"")
    with pytest.raises(TokenFileError, match=r"a\.vtk"):
        Tokens.load(tmp_path / "a.vtk")


def test_what_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FREE_BYTES", 0)
    monkeypatch.setattr(module, "_MAX_EXPANSION", 4)
    make_ids([4, 4]).save(tmp_path / "a.vtk")
    assert Tokens.load(tmp_path / "a.vtk") == make_ids([4, 4])
    with pytest.raises(VistokError, match="similar lengths"):
        make_ids([100, *[0] * 50]).save(tmp_path / "b.vtk")
