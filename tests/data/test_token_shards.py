"""Token shards: the same bytes however the work is shared and interrupted; damage is found; items are those of a bank."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import launch
from PIL import Image
from tiny_models import make
from torch.utils.data import DataLoader, default_collate

from vistok.cli import main
from vistok.data import ImageDataset, StatelessBatchSampler, open_source
from vistok.data import token_shards as reading
from vistok.data.shard_files import Manifest, ShardFacts
from vistok.data.shard_writer import write_token_shards
from vistok.data.token_shards import TokenShards, check_shards
from vistok.errors import DataError, VistokError
from vistok.generate import tokenize_images
from vistok.models.base import Tokenizer

RECIPE = {"views": "random:2", "shard_size": 4, "seed": 3, "batch_size": 6, "progress": False}
SOURCE = "random:11"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make("fsq_ordered")


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for name, data in contents(folder).items():
        (target / name).write_bytes(data)
    return target


def test_items_are_those_of_a_bank(tokenizer: Tokenizer, shards: Path) -> None:
    images = ImageDataset(open_source(SOURCE), image_size=32, crop="random", flip=0.5, train=True)
    bank = tokenize_images(tokenizer, images, views=2, seed=3)
    data = TokenShards(shards)
    assert len(data) == len(bank) == 11 and data.views == 2 and data.codebook_size == tokenizer.codebook_size
    assert data.classes == images.source.classes and data.tokenizer["weight_hash"] == tokenizer.weight_hash()
    assert list(data.captions) == bank.captions
    for key in [*range(11), *((index, seed) for index in range(11) for seed in (0, 5, 2**62))]:
        ours, theirs = data[key], bank[key]
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])) if name != "caption" else True
    data.keep(3)
    assert data[7]["ids"].tolist() == bank[7]["ids"][:3].tolist() and data[7]["length"] == 3
    with pytest.raises(IndexError):
        data[11]


def test_latents_and_lengths(tmp_path: Path) -> None:
    tokenizer = make("gaussian")
    for name, size in {"a": 4, "b": 4, "c": 6}.items():
        options = RECIPE | {"views": "flip", "batch_size": size}
        write_token_shards(tokenizer, open_source(SOURCE), tmp_path / name, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    data = TokenShards(tmp_path / "a")
    assert data.continuous and data.channels == 4 and data[10, 3]["latents"].shape == (6, 4)
    with pytest.raises(VistokError, match=r"pictures_per_batch \(2, now 3\)"):  # latents are drawn batch by batch
        write_token_shards(tokenizer, open_source(SOURCE), tmp_path / "a", **RECIPE | {"views": "flip"})


def test_workers_and_batches_do_not_matter(tokenizer: Tokenizer, shards: Path, tmp_path: Path) -> None:
    for name, options in {"a": {"num_workers": 2}, "b": {"batch_size": 1}, "c": {"batch_size": 100}}.items():
        write_token_shards(tokenizer, open_source(SOURCE), tmp_path / name, **RECIPE | options)
        assert contents(tmp_path / name) == contents(shards)


def test_half_precision_keeps_the_hash(shards: Path, tmp_path: Path) -> None:
    tokenizer = make("fsq_ordered")
    wanted = tokenizer.weight_hash()
    manifest = write_token_shards(tokenizer, open_source(SOURCE), tmp_path, **RECIPE, dtype=torch.bfloat16)
    assert manifest.recipe["dtype"] == "bfloat16" and tokenizer.weight_hash() != wanted
    half, whole = TokenShards(tmp_path), TokenShards(shards)
    assert half.tokenizer == whole.tokenizer and half.tokenizer["weight_hash"] == wanted
    same = torch.stack([half[index]["ids"] == whole[index]["ids"] for index in range(11)])
    assert same.float().mean() > 0.5


class KilledError(Exception):
    pass


@settings(max_examples=12)
@given(batches=st.integers(0, 5), torn=st.sampled_from(["", ".vtk", ".npz", ".json"]), cut=st.integers(0, 200))
def test_interrupted_anywhere(tmp_path_factory, tokenizer, shards, batches: int, torn: str, cut: int) -> None:
    folder = tmp_path_factory.mktemp("killed")
    left = batches

    def dying(images, **kwargs):
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        return type(tokenizer).encode(tokenizer, images, **kwargs)

    tokenizer.encode = dying
    try:
        with pytest.raises(KilledError):
            write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE)
    finally:
        del tokenizer.encode
    with pytest.raises(DataError, match="not finished"):
        TokenShards(folder)
    for path in sorted(folder.glob(f"shard-*{torn}"))[:1] if torn else []:
        path.write_bytes(path.read_bytes()[:cut])  # as a machine that loses power may leave it
    (folder / ".shard-00001.vtk.abcd.tmp").write_bytes(b"half")
    write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE)
    assert contents(folder) == contents(shards)


def test_only_what_is_missing_is_made(tokenizer: Tokenizer, shards: Path, tmp_path: Path) -> None:
    folder = copy(shards, tmp_path / "a")
    (folder / "shard-00001.npz").unlink()
    kept = (folder / "shard-00000.vtk").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"1 files of token shards are missing: shard-00001.npz"):
        TokenShards(folder)
    write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE)
    assert contents(folder) == contents(shards) and (folder / "shard-00000.vtk").stat().st_mtime_ns == kept


def test_any_damaged_byte_is_found(shards: Path, tmp_path: Path) -> None:
    folder = copy(shards, tmp_path / "a")
    assert check_shards(folder)["damaged"] == [] and check_shards(folder)["rows"] == 22
    rng = np.random.default_rng(0)
    for name, data in contents(shards).items():
        for place in {0, len(data) - 1, *rng.integers(0, len(data), 25).tolist()}:
            broken = bytearray(data)
            broken[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(broken)
            try:
                assert check_shards(folder)["damaged"], (name, place)
            except DataError:
                assert name == "manifest.json"
        (folder / name).write_bytes(data)
    (folder / "shard-00002.vtk").unlink()
    assert check_shards(folder)["damaged"] == ["shard-00002.vtk is missing"]


def test_shards_of_others_are_refused(tokenizer: Tokenizer, shards: Path, tmp_path: Path) -> None:
    folder = copy(shards, tmp_path / "a")
    (folder / "shard-00001.vtk").write_bytes((folder / "shard-00002.vtk").read_bytes())
    data = TokenShards(folder)
    assert data[0]["length"] == 6
    with pytest.raises(DataError, match="shard 1 does not belong"):
        data[5]
    other = make("vq_pixels")
    write_token_shards(other, open_source(SOURCE), tmp_path / "b", **RECIPE)
    (folder / "shard-00000.vtk").write_bytes((tmp_path / "b" / "shard-00000.vtk").read_bytes())
    with pytest.raises(DataError, match="not those of its manifest"):
        TokenShards(folder)
    with pytest.raises(VistokError, match="tokenizer"):
        write_token_shards(tokenizer, open_source(SOURCE), tmp_path / "b", **RECIPE)
    with pytest.raises(VistokError, match=r"seed \(3, now 4\)"):
        write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE | {"seed": 4})
    (folder / "manifest.json").unlink()
    with pytest.raises(VistokError, match="whose they are"):
        write_token_shards(tokenizer, open_source(SOURCE), folder, **RECIPE)
    for content, message in {"[]": "no manifest", "{": "cannot be read", '{"kind": "token shards"}': "format"}.items():
        (folder / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=message):
            TokenShards(folder)
    with pytest.raises(DataError, match="does not exist"):
        TokenShards(tmp_path / "nowhere")


def test_unreadable_pictures_are_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            Image.effect_noise((40, 36), 50).convert("RGB").save(folder / label / f"{number}.png")
            (folder / label / f"{number}.txt").write_text(f"{label} nº {number}", encoding="utf-8")
    for name in ("cat/1.png", "dog/0.png", "dog/1.png"):
        (folder / name).write_bytes(b"no picture")
    source = open_source(f"folder:{folder}")
    options = {"shard_size": 2, "views": "flip", "progress": False}
    manifest = write_token_shards(tokenizer, source, tmp_path / "a", **options)
    assert [shard.pictures for shard in manifest.shards] == [1, 2, 0, 2]
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["unreadable"] == 3
    assert manifest.shards[2].unreadable == ("dog/0.png", "dog/1.png") and manifest.classes == ("cat", "dog")
    data = TokenShards(tmp_path / "a")
    assert [int(data[index]["label"]) for index in range(len(data))] == [0, 0, 0, 1, 1]
    assert list(data.captions) == ["cat nº 0", "cat nº 2", "cat nº 3", "dog nº 2", "dog nº 3"]
    assert [data.source_index(index) for index in range(5)] == [0, 2, 3, 6, 7]
    before = contents(tmp_path / "a")
    assert check_shards(tmp_path / "a")["damaged"] == []
    write_token_shards(tokenizer, source, tmp_path / "a", **options)
    assert contents(tmp_path / "a") == before
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 8 pictures"):
        write_token_shards(tokenizer, source, tmp_path / "b", **options)


def test_loaders_with_workers_and_few_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_OPEN_SHARDS", 1)
    data = TokenShards(shards)
    assert data[3, 1]["index"] == 3  # a file is open before workers are forked
    sampler = StatelessBatchSampler(len(data), 6, seed=1, num_steps=8)
    straight = [default_collate([data[key] for key in keys]) for keys in sampler]
    for batch, want in zip(DataLoader(data, batch_sampler=sampler, num_workers=2), straight, strict=True):
        assert torch.equal(batch["ids"], want["ids"]) and batch["caption"] == want["caption"]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[10, 4]["ids"], data[10, 4]["ids"])


def test_captions_of_any_text(tmp_path: Path) -> None:
    captions = ["", "é\n\x00", "漢字", "\ud800 lone", "last"]
    ShardFacts.of(range(5), [-1] * 5, captions).write(tmp_path / "a.npz")
    facts = ShardFacts.read(tmp_path / "a.npz")
    assert [facts.caption(place) for place in range(5)] == captions
    np.savez(tmp_path / "b.npz", index=np.zeros(2))
    with pytest.raises(DataError, match="cannot be read"):
        ShardFacts.read(tmp_path / "b.npz")


def test_two_processes_write_what_one_writes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--model", str(tmp_path / "tokenizer"), "--data", "random:11", "--views", "ten_crop", "--device", "cpu"]
    for processes in (1, 2):
        command = [*options, "--shard-size", "2", "--out", str(tmp_path / str(processes))]
        done = launch("../train/token_shards.py", command, processes)
        assert [process.returncode for process in done] == [0] * processes, done[-1].stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(Manifest.read(tmp_path / "1").shards) == 5


def test_the_command(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["tokenize", "--model", str(tmp_path / "tokenizer"), "--data", "emoji:Flags", "--device", "cpu"]
    command += ["--views", "flip", "--limit", "9", "--shard-size", "5", "--out", str(tmp_path / "a")]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["shards"], result["images"], result["rows"], result["unreadable"]) == (2, 9, 18, 0)
    assert main(command) == 0 and "2 shards, 9 images, 18 rows" in capsys.readouterr().out
    assert main(["tokenize", "--check", str(tmp_path / "a")]) == 0 and "all whole" in capsys.readouterr().out
    path = tmp_path / "a" / "shard-00001.vtk"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["tokenize", "--check", str(tmp_path / "a")]) == 2
    assert "1 of 2 shards are damaged: shard-00001.vtk" in capsys.readouterr().err
    assert main(command) == 0 and main(["tokenize", "--check", str(tmp_path / "a")]) == 0
    for bad, message in {
        ("--check", "a", "--model", "b"): "leave --model away",
        ("--model", "a"): "--data and --out",
    }.items():
        capsys.readouterr()
        assert main(["tokenize", *bad]) == 2 and message in capsys.readouterr().err
    assert main([*command, "--views", "ten"]) == 2 and "unknown views" in capsys.readouterr().err
    assert main([*command, "--batch-size", "0"]) == 2
