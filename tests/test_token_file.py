"""``.vtk`` files: what is kept, random access, streams, entropy coding, and what damage does."""

from __future__ import annotations

import base64
import binascii
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
from tiny_tokens import make_ids, make_latents, token_batches

import vistok.token_file as module
import vistok.token_packing as packing
from vistok.entropy import FrequencyTable
from vistok.errors import MissingExtraError, TokenFileError, VistokError
from vistok.token_file import TokenFile, TokenWriter, recode
from vistok.token_layout import block_ends
from vistok.tokens import Tokens

PREAMBLE = 18  # bytes before the header


# Packing.


@given(token_batches())
def test_rows_survive_packing(tokens: Tokens) -> None:
    lengths, bits = tokens.lengths.tolist(), (tokens.vocab_size - 1).bit_length()
    rows = packing.pack(tokens.ids.numpy(), lengths, bits)
    assert [len(row) for row in rows] == [math.ceil(length * bits / 8) for length in lengths]
    assert sum(map(len, rows)) * 8 - tokens.bits().sum() < 8 * len(rows) + 1
    columns = max(lengths, default=0)
    assert packing.unpack(rows, lengths, bits).tolist() == tokens.ids[:, :columns].tolist()
    for row, packed in enumerate(rows):  # the format, spelt out: big-endian numbers, zeros at the end
        text = "".join(f"{value:0{bits}b}" for value in tokens.ids[row, : lengths[row]].tolist()) if bits else ""
        assert "".join(f"{byte:08b}" for byte in packed) == text.ljust(len(packed) * 8, "0")


def test_packing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make_ids([7, 3, 0, 7, 5], 1000)
    lengths = tokens.lengths.tolist()
    rows = packing.pack(tokens.ids.numpy(), lengths, 10)
    monkeypatch.setattr(packing, "_WORKING_BITS", 140)  # two rows at a time
    assert packing.pack(tokens.ids.numpy(), lengths, 10) == rows
    assert packing.unpack(rows, lengths, 10).tolist() == tokens.ids.tolist()


# What is kept.


@settings(max_examples=50)
@given(tokens=token_batches())
def test_files_return_what_was_saved(tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "property.vtk"
    tokens.save(path)
    assert Tokens.load(path) == tokens


@pytest.mark.parametrize("codebook", [1, 2, 3, 256, 1000, 4096, 65537, (8, 8, 8, 5, 5, 5), 2**40])
def test_file_keeps_everything(tmp_path: Path, codebook: Any) -> None:
    tokens = make_ids([9, 0, 4, 40], codebook, family="titok", model="titok_ä", weight_hash="0123")
    tokens.save(tmp_path / "a.vtk")
    loaded = Tokens.load(str(tmp_path / "a.vtk"))
    assert loaded == tokens and loaded.codebook_size == codebook and loaded.ids.dtype == torch.int64
    assert (loaded.family, loaded.model, loaded.weight_hash) == ("titok", "titok_ä", "0123")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_file_keeps_latents_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    tokens = make_latents([3, 0, 20], 5, dtype)
    tokens.save(tmp_path / "a.vtk")
    loaded = Tokens.load(tmp_path / "a.vtk")
    assert loaded == tokens and loaded.codebook_size is None
    assert loaded.latents.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)


def test_float64_latents_are_not_rounded_behind_ones_back(tmp_path: Path) -> None:
    with pytest.raises(VistokError, match="float64"):
        make_latents([1], dtype=torch.float64).save(tmp_path / "a.vtk")


@pytest.mark.parametrize("tokens", [make_ids([]), make_ids([0, 0]), make_latents([]), make_latents([0])])
def test_empty_tokens_have_files_too(tmp_path: Path, tokens: Tokens) -> None:
    tokens.save(tmp_path / "a.vtk")
    assert Tokens.load(tmp_path / "a.vtk") == tokens
    with TokenFile.open(tmp_path / "a.vtk") as file:
        assert len(file) == len(tokens) == len(list(file))


def test_overhead_is_as_stated(tmp_path: Path) -> None:
    """A byte or two for the length and three for each block: 8, 16, 32, ... tokens."""
    tokens = make_ids([0, 1, 8, 9, 32, 256], 4096)
    tokens.save(tmp_path / "a.vtk")
    with TokenFile.open(tmp_path / "a.vtk") as file:
        assert file.sizes.tolist() == [1 + 0 + 3, 1 + 2 + 3, 1 + 12 + 3, 1 + 14 + 6, 1 + 48 + 9, 2 + 384 + 18]
        assert file.sizes.tolist() == file.layout.record_bytes(file.lengths.tolist())
        assert file.index_bytes + file.sizes.sum() == file.num_bytes == (tmp_path / "a.vtk").stat().st_size
    assert block_ends(0) == [0] and block_ends(8) == [8] and block_ends(33) == [8, 16, 32, 33]


def test_a_record_is_as_the_format_says(tmp_path: Path) -> None:
    tokens = make_ids([10], 4096)
    tokens.save(tmp_path / "a.vtk")
    header, record = split(tmp_path / "a.vtk")[:2]
    assert header["kind"] == "ids" and header["codebook_size"] == 4096 and "entropy" not in header
    seed = zlib.crc32((tmp_path / "a.vtk").read_bytes()[:14])
    seed = zlib.crc32(
        (tmp_path / "a.vtk").read_bytes()[PREAMBLE:][: len(json.dumps(header, separators=(",", ":")))], seed
    )
    bits = "".join(f"{value:012b}" for value in tokens.ids[0].tolist())
    plain = int(bits, 2).to_bytes(15, "big")
    expected = b"\x0b"
    for block in (plain[:12], plain[12:]):
        covered = b"\x0b" + plain[: 12 if block == plain[:12] else 15]
        check = binascii.crc_hqx(covered, seed & 0xFFFF) << 8 | zlib.crc32(covered, seed) & 0xFF
        expected += block + check.to_bytes(3, "big")
    assert record[: len(expected)] == expected


# Version 1.

V1_IDS = (
    "VklTVE9LVhoBAKoAAABm0M4SeyJmYW1pbHkiOiJ0aXRvayIsIm1vZGVsIjoibSIsIndlaWdodF9oYXNoIjoiaCIsImtpbmQiOiJpZHMiLCJjb2Rl"
    "Ym9va19zaXplIjoxMDAwLCJjaGFubmVscyI6MCwibGVuZ3RocyI6WzMsMCwyXSwib2Zmc2V0cyI6WzAsNCw0LDddLCJjaGVja3N1bXMiOlsyNjE5"
    "MTcyMDIsMCwzNjM2NTg2MzE1XX35wBAIAcCA"
)
V1_LATENTS = (
    "VklTVE9LVhoBAKAAAAClJ7CQeyJmYW1pbHkiOiIiLCJtb2RlbCI6IiIsIndlaWdodF9oYXNoIjoiIiwia2luZCI6ImZwMTYiLCJjb2RlYm9va19z"
    "aXplIjpudWxsLCJjaGFubmVscyI6MiwibGVuZ3RocyI6WzIsMV0sIm9mZnNldHMiOlswLDgsMTJdLCJjaGVja3N1bXMiOlszNDg3MjY5OTY1LDEz"
    "NDg1NTQ1MjddfQA+AMAANABCAEQARQ=="
)


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    content = base64.b64decode(V1_IDS)
    (tmp_path / "a.vtk").write_bytes(content)
    tokens = Tokens.load(tmp_path / "a.vtk")
    assert tokens.ids.tolist() == [[999, 1, 2], [0, 0, 0], [7, 8, 0]] and tokens.lengths.tolist() == [3, 0, 2]
    assert (tokens.codebook_size, tokens.family, tokens.model, tokens.weight_hash) == (1000, "titok", "m", "h")
    with TokenFile.open(content) as file:
        assert file.version == 1 and file[2] == tokens[2].truncate(2) and file.names == []
        with pytest.raises(TokenFileError, match="write it anew"):
            file.read_prefix(0, 3)
    with pytest.raises(TokenFileError, match="write it anew"):
        TokenFile.recover(content)
    latents = TokenFile.open(base64.b64decode(V1_LATENTS)).read_all()
    assert latents.latents.tolist() == [[[1.5, -2.0], [0.25, 3.0]], [[4.0, 5.0], [0.0, 0.0]]]


@pytest.mark.parametrize("text", [V1_IDS, V1_LATENTS])
def test_damage_to_version_1_is_noticed(text: str) -> None:
    content = base64.b64decode(text)
    for size in range(len(content)):
        with pytest.raises(TokenFileError):
            TokenFile.open(content[:size]).read_all()
    for bit in range(len(content) * 8):
        with pytest.raises(TokenFileError):
            TokenFile.open(flipped(content, bit)).read_all()


# Random access and streams.


@pytest.fixture
def several(tmp_path: Path) -> tuple[Path, Tokens]:
    tokens = make_ids([5, 2, 30, 0, 12], 1000, family="titok", model="m", weight_hash="h")
    with TokenWriter(tmp_path / "a.vtk") as writer:
        sizes = [*writer.write(tokens[:2], ["a", "b"]), *writer.write(tokens[2:], ["c/d.png", "ä", "e"])]
    with TokenFile.open(tmp_path / "a.vtk") as file:
        assert file.sizes.tolist() == sizes
    return tmp_path / "a.vtk", tokens


def test_images_are_read_by_number(several: tuple[Path, Tokens]) -> None:
    path, tokens = several
    with TokenFile.open(path) as file:
        assert (
            len(file) == 5
            and file.names == ["a", "b", "c/d.png", "ä", "e"]
            and file.lengths.tolist() == [5, 2, 30, 0, 12]
        )
        for rows in (2, -1, np.int64(1), slice(1, 4), slice(None, None, -2), [4, 0, 4], (1, 1), []):
            wanted = tokens[rows]
            assert file[rows] == wanted.truncate(wanted.num_tokens)
        assert [len(row) for row in file] == [1] * 5 and Tokens.cat(list(file)) == tokens
        assert Tokens.cat(list(file.batches(2))) == tokens and [len(part) for part in file.batches(2)] == [2, 2, 1]
        for rows in (5, -6, [0, 5]):
            with pytest.raises(IndexError):
                file[rows]


def test_names_of_any_sort_are_kept(tmp_path: Path) -> None:
    names = ["a b.png", "ä/ö.jpg", "\udcff.png", "", "\n"]  # the third: a file name that is no UTF-8
    with TokenWriter(tmp_path / "a.vtk") as writer:
        writer.write(make_ids([1] * 5), names)
    with TokenFile.open(tmp_path / "a.vtk") as file:
        assert file.names == names


def test_one_damaged_image_leaves_the_others(several: tuple[Path, Tokens]) -> None:
    path, tokens = several
    with TokenFile.open(path) as file:
        start = path.read_bytes().index(file.record(2))
    damaged = flipped(path.read_bytes(), (start + 20) * 8)
    with TokenFile.open(damaged) as file:
        assert file[[0, 1, 3, 4]] == tokens[[0, 1, 3, 4]].truncate(12)
        with pytest.raises(TokenFileError, match="image 2"):
            file[2]
        with pytest.raises(TokenFileError, match="image 2"):
            list(file)
    recovered = TokenFile.recover(damaged)
    assert [int(row.lengths[0]) for row in recovered] == [5, 2, 8]
    assert Tokens.cat(recovered) == tokens[:3].truncate([5, 2, 8])


def test_a_stream_is_read_as_it_comes(several: tuple[Path, Tokens]) -> None:
    path, tokens = several
    with TokenFile.open(path) as file:
        record = file.record(2)
        header = path.read_bytes()[: path.read_bytes().index(file.record(0))]
    layout = TokenFile.read_layout(header)
    got = [int(layout.decode_prefix(memoryview(record)[:size]).lengths[0]) for size in range(len(record) + 1)]
    assert sorted(set(got)) == [0, 8, 16, 30] and layout.model == "m"
    assert layout.decode_prefix(bytearray(record)) == tokens[2]
    for size in range(len(header)):
        with pytest.raises(TokenFileError):
            TokenFile.read_layout(header[:size])
    with pytest.raises(VistokError, match="'error' or 'prefix'"):
        layout.decode_prefix(record, damaged="maybe")


def test_a_writer_is_closed_once(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "a.vtk")
    writer.write(make_ids([3]))
    writer.close()
    writer.close()
    with pytest.raises(VistokError, match="closed"):
        writer.write(make_ids([3]))
    assert Tokens.load(tmp_path / "a.vtk") == make_ids([3])


def test_opening_reads_no_images(several: tuple[Path, Tokens], monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = several
    read: list[int] = []
    original = TokenFile._record
    monkeypatch.setattr(TokenFile, "_record", lambda self, row: read.append(row) or original(self, row))
    with TokenFile.open(path) as file:
        assert read == [] and file[3:] == tokens[3:].truncate(12) and read == [3, 4]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    tokens = make_ids([3], 1000, weight_hash="h")
    strangers = [tokens.replace(codebook_size=2000), tokens.replace(weight_hash="i"), make_latents([1])]
    for stranger in strangers:
        with pytest.raises(VistokError, match="one tokenizer"), TokenWriter(tmp_path / "a.vtk") as writer:
            writer.write(tokens)
            writer.write(stranger)
    with pytest.raises(VistokError, match="or none has"), TokenWriter(tmp_path / "a.vtk") as writer:
        writer.write(tokens, ["a"])
        writer.write(tokens)
    with pytest.raises(VistokError, match="as many names"), TokenWriter(tmp_path / "a.vtk") as writer:
        writer.write(tokens, ["a", "b"])
    with pytest.raises(VistokError, match="nothing was written"), TokenWriter(tmp_path / "a.vtk"):
        pass
    assert os.listdir(tmp_path) == []


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
    with pytest.raises(KeyboardInterrupt), TokenWriter(path) as writer:
        writer.write(make_ids([9]))
        raise KeyboardInterrupt
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


# Damage. Every cut and every flipped bit of small files, with and without entropy coding.


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header, and all that follows it, of a sound file."""
    content = path.read_bytes()
    size = struct.unpack_from("<8sHI", content)[2]
    return json.loads(content[PREAMBLE : PREAMBLE + size]), content[PREAMBLE + size :]


def join(header: bytes, rest: bytes, *, version: int = 2) -> bytes:
    """A file with right checksums of its header, whatever that says."""
    start = struct.pack("<8sHI", b"VISTOKV\x1a", version, len(header))
    return start + struct.pack("<I", zlib.crc32(start + header)) + header + rest


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


SOUND = {
    "ids": make_ids([3, 0, 18], 1000, family="titok", model="m", weight_hash="h"),
    "product": make_ids([20, 9], (8, 5, 5)),
    "one word": make_ids([3, 1], 1),
    "fp32": make_latents([2, 9], 2),
    "fp16": make_latents([2, 1], 2, torch.float16),
    "no rows": make_ids([]),
}
CODED = ("ids", "product")


def stored(name: str, folder: Path, *, coded: bool = False) -> bytes:
    tokens = SOUND[name]
    table = FrequencyTable.fit([tokens], unseen=0.0) if coded else None
    with TokenWriter(folder / "a.vtk", prior=table) as writer:
        writer.write(tokens, [f"picture {row}" for row in range(len(tokens))])
    return (folder / "a.vtk").read_bytes()


@pytest.fixture(params=[(name, False) for name in SOUND] + [(name, True) for name in CODED], ids=str)
def sound(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokens, bytes]:
    name, coded = request.param
    return SOUND[name], stored(name, tmp_path, coded=coded)


def is_prefix(part: Tokens, whole: Tokens) -> bool:
    return int(part.lengths[0]) <= int(whole.lengths[0]) and part == whole.truncate(int(part.lengths[0]))


def recovered_well(content: bytes, tokens: Tokens) -> int:
    """How many images a damaged file still gives, all right: whole ones, and the valid prefix of the last. -1 for an error."""
    try:
        found = TokenFile.recover(content)
    except TokenFileError:
        return -1
    assert len(found) <= len(tokens)
    for row, part in enumerate(found):
        assert is_prefix(part, tokens[row]), f"image {row}"
        assert row == len(found) - 1 or part == tokens[row].truncate(tokens.num_tokens)
    return len(found)


def test_every_cut_is_noticed_and_gives_valid_prefixes(sound: tuple[Tokens, bytes], tmp_path: Path) -> None:
    tokens, content = sound
    path = tmp_path / "cut.vtk"
    counts = []
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(TokenFileError, match=r"cut\.vtk"):
            Tokens.load(path)
        counts.append(recovered_well(content[:size], tokens))
    assert counts == sorted(counts) and counts[0] == -1 and counts[-1] == len(tokens)
    for more in (b"\0", content):
        with pytest.raises(TokenFileError):
            TokenFile.open(content + more).read_all()


def test_every_flipped_bit_is_noticed_or_leaves_valid_prefixes(sound: tuple[Tokens, bytes]) -> None:
    tokens, content = sound
    with TokenFile.open(content) as file:
        records = (
            range(content.index(file.record(0)), content.index(file.record(0)) + int(file.sizes.sum()))
            if len(file)
            else range(0)
        )
    for bit in range(len(content) * 8):
        if bit // 8 not in records and bit % 8 != bit // 8 % 8:
            continue  # one bit of each byte is enough in header and index
        damaged = flipped(content, bit)
        with pytest.raises(TokenFileError):
            TokenFile.open(damaged).read_all()
        recovered_well(damaged, tokens)


def test_every_prefix_of_an_image_gives_its_first_tokens(sound: tuple[Tokens, bytes]) -> None:
    tokens, content = sound
    with TokenFile.open(content) as file:
        for row in range(len(file)):
            record, layout = file.record(row), file.layout
            lengths = []
            for size in range(len(record) + 1):
                part = layout.decode_prefix(record[:size])
                assert is_prefix(part, tokens[row]) and part == file.read_prefix(row, size)
                lengths.append(int(part.lengths[0]))
            assert lengths == sorted(lengths) and lengths[-1] == tokens.lengths[row]
            assert set(lengths) <= {0, *block_ends(int(tokens.lengths[row]))}
            assert layout.decode_prefix(record + b"what follows") == tokens[row].truncate(lengths[-1])


def test_flipped_bits_of_an_image_are_an_error_or_its_valid_prefix(sound: tuple[Tokens, bytes]) -> None:
    tokens, content = sound
    with TokenFile.open(content) as file:
        for row in range(len(file)):
            record = file.record(row)
            for bit in range(8 * len(record)):
                for size in (len(record), max(bit // 8 + 1, len(record) - 3)):
                    damaged = flipped(record, bit)[:size]
                    prefix = file.layout.decode_prefix(damaged, damaged="prefix")
                    assert is_prefix(prefix, tokens[row])
                    try:
                        assert file.layout.decode_prefix(damaged) == prefix
                    except TokenFileError as error:
                        assert "damaged" in str(error)


@settings(max_examples=300)
@given(rows=st.lists(st.lists(st.integers(0, 999), max_size=40), min_size=1, max_size=4), data=st.data())
def test_random_damage_never_gives_wrong_tokens(rows: list[list[int]], data: st.DataObject) -> None:
    columns = max(map(len, rows))
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows], dtype=torch.int64).reshape(
        len(rows), columns
    )
    tokens = Tokens(ids, lengths=[len(row) for row in rows], codebook_size=1000)
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"random-{os.getpid()}.vtk"
    try:
        with TokenWriter(path, prior=data.draw(st.sampled_from([None, FrequencyTable.fit([tokens])]))) as writer:
            writer.write(tokens)
        content = bytearray(path.read_bytes())
    finally:
        path.unlink(missing_ok=True)
    start = data.draw(st.integers(0, len(content) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=12))
    changed = bytes(content[:start] + garbage + content[start + len(garbage) :])
    try:
        assert TokenFile.open(changed).read_all() == tokens  # the same bytes by chance, or an error
    except TokenFileError:
        recovered_well(changed, tokens)


@settings(max_examples=100)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: b"VISTOKV\x1a" + rest)))
def test_foreign_files_are_refused(content: bytes) -> None:
    for read in (TokenFile.open, TokenFile.recover):
        with pytest.raises(TokenFileError):
            read(content)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    torch.save({"ids": torch.zeros(2, 3)}, tmp_path / "a.vtk")
    with pytest.raises(TokenFileError, match="not a vistok token file"):
        Tokens.load(tmp_path / "a.vtk")


def test_newer_versions_are_named() -> None:
    with pytest.raises(TokenFileError, match="version 3"):
        TokenFile.open(join(b"{}", b"", version=3))


V1_KEYS = "kind channels lengths offsets checksums codebook_size family model weight_hash".split()
V2_KEYS = "kind channels codebook_size family model weight_hash".split()
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another kind": lambda h: h.update(kind="int8"),
    "a kind that is no name": lambda h: h.update(kind=["ids"]),
    "latents with a codebook": lambda h: h.update(kind="fp32"),
    "null codebook": lambda h: h.update(codebook_size=None),
    "codebook of nothing": lambda h: h.update(codebook_size=0),
    "codebook as text": lambda h: h.update(codebook_size="1000"),
    "codebook of other bits": lambda h: h.update(codebook_size=5000),
    "channels as text": lambda h: h.update(channels="0"),
    "model as a number": lambda h: h.update(model=3),
}
V1_CHANGES = CHANGES | {
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
    **{f"no {key}": lambda h, key=key: h.pop(key) for key in V1_KEYS},
}
V2_CHANGES = CHANGES | {
    "an unknown prior": lambda h: h.update(entropy={"kind": "learned"}),
    "frequencies that are no text": lambda h: h.update(entropy={"kind": "static", "groups": 1, "table": 3}),
    "frequencies that are too few": lambda h: h.update(
        entropy={"kind": "static", "groups": 1, "table": "eJwDAAAAAAE="}
    ),
    "frequencies of many groups": lambda h: h.update(entropy={"kind": "static", "groups": 10**9, "table": ""}),
    "no frequencies": lambda h: h.update(entropy={"kind": "static"}),
    **{f"no {key}": lambda h, key=key: h.pop(key) for key in V2_KEYS},
}


@pytest.mark.parametrize("change", V1_CHANGES)
def test_headers_of_version_1_that_make_no_sense(change: str) -> None:
    content = base64.b64decode(V1_IDS)
    size = struct.unpack_from("<8sHI", content)[2]
    header, body = json.loads(content[PREAMBLE : PREAMBLE + size]), content[PREAMBLE + size :]
    assert len(TokenFile.open(join(json.dumps(header).encode(), body, version=1)).read_all()) == 3
    V1_CHANGES[change](header)
    with pytest.raises(TokenFileError):
        TokenFile.open(join(json.dumps(header).encode(), body, version=1)).read_all()


@pytest.mark.parametrize("change", V2_CHANGES)
def test_headers_that_make_no_sense(tmp_path: Path, change: str) -> None:
    SOUND["ids"].save(tmp_path / "a.vtk")
    header, rest = split(tmp_path / "a.vtk")
    encoded = json.dumps(header, separators=(",", ":")).encode()
    assert TokenFile.open(join(encoded, rest)).read_all() == SOUND["ids"]  # so it is the change that is refused
    V2_CHANGES[change](header)
    for read in (lambda content: TokenFile.open(content).read_all(), TokenFile.recover):
        try:
            assert read(join(json.dumps(header).encode(), rest)) == []  # nothing that passes its checks
        except TokenFileError:
            continue


@pytest.mark.parametrize("header", [b"", b"null", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
@pytest.mark.parametrize("version", [1, 2])
def test_headers_that_are_no_objects(header: bytes, version: int) -> None:
    with pytest.raises(TokenFileError):
        TokenFile.open(join(header, b"", version=version))


def test_header_length_does_not_allocate() -> None:
    for version in (1, 2):
        with pytest.raises(TokenFileError, match="does not fit"):
            TokenFile.open(struct.pack("<8sHII", b"VISTOKV\x1a", version, 2**32 - 1, 0) + b"{}")


GREEDY: list[dict[str, Any]] = [
    {"codebook_size": 1, "lengths": [10**12]},
    {"codebook_size": 1, "lengths": [10**30]},
    {"kind": "fp32", "codebook_size": None, "lengths": [10**12]},
    {"kind": "fp16", "codebook_size": None, "lengths": [0], "channels": 10**30},
]


@pytest.mark.parametrize("changes", GREEDY)
def test_small_files_cannot_ask_for_gigabytes(changes: dict[str, Any]) -> None:
    names = {"family": "", "model": "", "weight_hash": ""}
    header = {"kind": "ids", "channels": 0, "offsets": [0, 0], "checksums": [0], **names, **changes}
    with pytest.raises(TokenFileError):
        TokenFile.open(join(json.dumps(header).encode(), b"", version=1)).read_all()


@pytest.mark.parametrize("coded", [False, True])
def test_a_record_cannot_ask_for_gigabytes(tmp_path: Path, coded: bool) -> None:
    content = stored("ids", tmp_path, coded=coded)
    with TokenFile.open(content) as file:
        for length in (2**30, 2**50, 2**66):
            start = bytearray()
            while length >= 128:
                start.append(length & 127 | 128)
                length >>= 7
            data = bytes(start) + bytes([length]) + file.record(2)[1:]
            assert file.layout.decode_prefix(data, damaged="prefix").num_tokens == 0


def test_what_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FREE_BYTES", 0)
    monkeypatch.setattr(module, "_MAX_EXPANSION", 4)
    make_ids([4, 4]).save(tmp_path / "a.vtk")
    assert Tokens.load(tmp_path / "a.vtk") == make_ids([4, 4])
    with pytest.raises(VistokError, match="similar lengths"):
        make_ids([100, *[0] * 50]).save(tmp_path / "b.vtk")
    assert os.listdir(tmp_path) == ["a.vtk"]


# Entropy coding.


def skewed(rows: int, length: int, codebook: Any, *, seed: int = 0) -> Tokens:
    """Ids of which small ones are frequent, and the more so the later they come."""
    rng = np.random.default_rng(seed)
    vocab = math.prod(codebook) if isinstance(codebook, tuple) else codebook
    powers = 1 + np.arange(length) / 4
    ids = (rng.random((rows, length)) ** powers * vocab).astype(np.int64)
    lengths = rng.integers(1, length + 1, rows)
    return Tokens(torch.from_numpy(ids), lengths=torch.from_numpy(lengths), codebook_size=codebook)


@settings(max_examples=40)
@given(tokens=token_batches(), by_position=st.sampled_from([None, True, False]), unseen=st.sampled_from([0.0, 0.5]))
def test_coded_files_return_what_was_saved(
    tokens: Tokens, by_position: bool | None, unseen: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "coded.vtk"
    levels = tokens.codebook_size if isinstance(tokens.codebook_size, tuple) else (tokens.codebook_size,)
    if max(levels) > 2**20:
        with pytest.raises(VistokError, match="at most 1048576 values"):
            FrequencyTable.fit([tokens], unseen=unseen)
        return
    table = FrequencyTable.fit([tokens], unseen=unseen, by_position=by_position)
    with TokenWriter(path, prior=table) as writer:
        writer.write(tokens)
    assert Tokens.load(path) == tokens


@pytest.mark.parametrize("codebook", [4096, (8, 8, 8, 8), (4, 1, 6), 1, 2])
def test_any_table_codes_any_ids(codebook: Any, tmp_path: Path) -> None:
    table = FrequencyTable.fit([skewed(30, 20, codebook)], unseen=0.0)
    strange = make_ids([20, 33, 1], codebook)  # ids and positions that the table has not seen
    with TokenWriter(tmp_path / "a.vtk", prior=table) as writer:
        writer.write(strange)
    assert Tokens.load(tmp_path / "a.vtk") == strange


def test_coding_comes_near_the_entropy(tmp_path: Path) -> None:
    tokens = skewed(2000, 32, 64).replace(lengths=[32] * 2000)
    table = FrequencyTable.fit([tokens], by_position=True)
    with TokenWriter(tmp_path / "a.vtk", prior=table) as writer:
        sizes = writer.write(tokens)
    ideal = 0.0
    for start, end in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32)):
        counts = np.bincount(tokens.ids[:, start:end].flatten().numpy(), minlength=64)
        share = counts[counts > 0] / counts.sum()
        ideal -= (end - start) * float((share * np.log2(share)).sum()) / 8
    assert ideal + 9 <= np.mean(sizes) < ideal + 2 + 9 + 1.5, "two varints, three checks, and not much more"
    assert np.mean(sizes) < 0.9 * tokens.bits().mean() / 8 + 12


def test_the_cheaper_grouping_is_chosen() -> None:
    assert FrequencyTable.fit([skewed(4000, 32, (8, 8))]).num_groups == 6
    assert FrequencyTable.fit([skewed(3, 32, (8, 8))]).num_groups == 1


def test_frequencies_can_stay_outside(tmp_path: Path) -> None:
    tokens = skewed(50, 20, (8, 5))
    table = FrequencyTable.fit([tokens])
    table.save(tmp_path / "table.json")
    again = FrequencyTable.load(tmp_path / "table.json")
    assert again.hash == table.hash and again.levels == (8, 5)
    with TokenWriter(tmp_path / "a.vtk", prior=table, embed=False) as writer:
        writer.write(tokens)
    assert TokenFile.open(tmp_path / "a.vtk", prior=again).read_all() == tokens
    other = FrequencyTable.fit([tokens[:10]])
    for given_table, words in ((None, "none was given"), (other, other.hash)):
        with pytest.raises(TokenFileError, match=words):
            TokenFile.open(tmp_path / "a.vtk", prior=given_table)


def test_recode_there_and_back(tmp_path: Path) -> None:
    tokens = skewed(20, 20, (8, 5))
    with TokenWriter(tmp_path / "a.vtk") as writer:
        writer.write(tokens, [str(row) for row in range(20)])
    recode(tmp_path / "a.vtk", tmp_path / "b.vtk", prior=FrequencyTable.fit([tokens]), batch_size=7)
    recode(tmp_path / "b.vtk", tmp_path / "c.vtk", prior=None)
    assert (tmp_path / "c.vtk").read_bytes() == (tmp_path / "a.vtk").read_bytes()
    with TokenFile.open(tmp_path / "b.vtk") as file:
        assert file.names == [str(row) for row in range(20)] and file.read_all() == tokens


def test_tables_that_make_no_sense(tmp_path: Path) -> None:
    ones = np.ones(4, dtype=np.int64)
    for frequencies in ([], [[ones, ones]], [[ones[:3]]], [[ones * 0]], [[-ones]], [[ones << 20]]):
        with pytest.raises(VistokError):
            FrequencyTable((4,), frequencies)
    for bad in (make_latents([1]), make_ids([1]).replace(codebook_size=None)):
        with pytest.raises(VistokError):
            FrequencyTable.fit([bad])
    with pytest.raises(VistokError, match="got none"):
        FrequencyTable.fit([])
    with pytest.raises(VistokError, match="one codebook"):
        FrequencyTable.fit([make_ids([1], 4), make_ids([1], 5)])
    with (
        pytest.raises(VistokError, match="for the levels"),
        TokenWriter(tmp_path / "a.vtk", prior=FrequencyTable((4,), [[ones]])) as writer,
    ):
        writer.write(make_ids([2], 5))
    for text in (
        "",
        "{}",
        '{"kind": "learned"}',
        "\xff",
        '{"kind": "static", "levels": [4], "groups": 1, "table": "x"}',
    ):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(VistokError, match=r"table\.json"):
            FrequencyTable.load(tmp_path / "table.json")


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = stored("product", tmp_path, coded=True)
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(VistokError, match=r"pip install 'vistok\[codec\]'"):
        TokenFile.open(content).read_all()
    with (
        pytest.raises(MissingExtraError),
        TokenWriter(tmp_path / "b.vtk", prior=FrequencyTable.fit([SOUND["product"]])) as writer,
    ):
        writer.write(SOUND["product"])
