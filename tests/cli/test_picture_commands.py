"""``reconstruct``, ``encode`` and ``decode``, on pictures of all sorts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import GOOD, refused, run, run_json
from PIL import Image
from tiny_models import BASE

from vistok.data import load_images
from vistok.entropy import FrequencyTable
from vistok.hub import from_pretrained
from vistok.metrics import psnr
from vistok.models.titok import TiTok
from vistok.token_file import TokenFile, TokenWriter
from vistok.tokens import Tokens

# reconstruct.


def test_reconstruct_pictures_of_all_sorts(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("reconstruct", *GOOD, "--model", models / "ordered", "--out", "sub/grid.png", "--lengths", "1,3,6")
    found = run_json(capsys, *arguments, "--batch-size", "4")
    assert [row["name"] for row in found["images"]] == list(GOOD)
    assert all(set(row["psnr"]) == {"1", "3", "6"} for row in found["images"])
    with Image.open("sub/grid.png") as grid:
        assert grid.mode == "RGB" and grid.width > 4 * 32 and grid.height > len(GOOD) * 32
    upright, turned = (
        next(row for row in found["images"] if row["name"] == name) for name in ("odd.png", "turned.png")
    )
    assert upright["psnr"] == pytest.approx(turned["psnr"], abs=1e-4), "EXIF orientation is applied"


@pytest.mark.parametrize("model", ["fixed", "continuous"])
@pytest.mark.parametrize("crop", ["center", "arc", "squash", "pad"])
def test_reconstruct_with_every_crop(
    model: str, crop: str, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", "odd.png", "--model", models / model, "--crop", crop, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "odd.png: 6 tokens" in out and f"({crop} crop to 32 pixels)" in out
    assert Path("reconstructions.png").is_file()


def test_reconstruct_with_a_caption(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Features:
        def __call__(self, captions: list[str]) -> torch.Tensor:
            seen.extend(captions)
            return torch.zeros(len(captions), 5, 7)

    monkeypatch.setattr("vistok.models.text.ClipTextFeatures", Features)
    assert run("reconstruct", "odd.png", "grey.jpg", "--model", models / "text", "--caption", "a cat") == 0
    assert seen == ["a cat", "a cat"]


# encode, decode.


def test_encode_and_decode(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = from_pretrained(models / "ordered")
    arguments = ("encode", *GOOD, "--model", models / "ordered", "--out", "sub/pictures.vtk", "--batch-size", "4")
    found = run_json(capsys, *arguments)
    tokens = Tokens.load("sub/pictures.vtk")
    images = load_images(list(GOOD), like=model, crop="center")
    assert tokens == model.encode(images) and len(tokens.ids.unique(dim=0)) > 2
    assert torch.equal(tokens.ids[0], tokens.ids[-1]), "EXIF orientation is applied"
    assert found["images"] == list(GOOD) and found["bytes"] == Path("sub/pictures.vtk").stat().st_size
    assert found["weight_hash"] == tokens.weight_hash == model.weight_hash()

    info = run_json(capsys, "info", "sub/pictures.vtk")
    assert info["images"] == 6 and info["tokens_per_image"] == [6, 6] and info["codebook_size"] == [4, 3, 5, 2]
    decoded = run_json(capsys, "decode", "sub/pictures.vtk", "--model", models / "ordered", "--out", "decoded")
    assert [Path(path).name for path in decoded["pictures"]] == [f"{i:05d}.png" for i in range(6)]
    wanted = (model.decode(tokens) * 255).round().to(torch.uint8)
    for path, image in zip(decoded["pictures"], wanted, strict=True):
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("length", [1, 4])
def test_encode_and_decode_fewer_tokens(
    length: int, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", models / "ordered")
    assert run_json(capsys, "encode", "odd.png", *model, "--out", "short.vtk", "--length", length)["tokens"] == length
    assert run("encode", "odd.png", *model, "--out", "long.vtk") == 0
    assert run("decode", "short.vtk", *model, "--out", "short") == 0
    assert run("decode", "long.vtk", *model, "--out", "long", "--length", length) == 0
    assert Path("short/00000.png").read_bytes() == Path("long/00000.png").read_bytes()


def test_continuous_tokens(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", models / "continuous")
    assert run("encode", "odd.png", *model, "--out", "x.vtk") == 0 and Tokens.load("x.vtk").is_continuous
    assert run("decode", "x.vtk", *model, "--out", "decoded") == 0 and Path("decoded/00000.png").is_file()
    assert run_json(capsys, "info", "x.vtk")["codebook_size"] is None


def test_a_folder_of_pictures(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/deeper").mkdir(parents=True)
    for name, folder in (("odd.png", "pictures"), ("grey.jpg", "pictures/deeper")):
        Path(name).rename(Path(folder) / name)
    found = run_json(capsys, "encode", "pictures", "alpha.png", "--model", models / "ordered", "--out", "x.vtk")
    assert found["images"] == ["deeper/grey.jpg", "odd.png", "alpha.png"] and found["unreadable"] == []
    assert run("decode", "x.vtk", "--model", models / "ordered", "--out", "named", "--names") == 0
    assert [str(path.relative_to("named")) for path in sorted(Path("named").rglob("*.png"))] == [
        "alpha.png",
        "deeper/grey.png",
        "odd.png",
    ]
    assert run("decode", "x.vtk", "--model", models / "ordered", "--out", "one", "--index", "1") == 0
    assert Path("one/00001.png").read_bytes() == Path("named/odd.png").read_bytes()
    assert len(list(Path("one").iterdir())) == 1


def test_unreadable_pictures_of_a_folder_are_left_out_and_named(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "encode", ".", "--model", models / "ordered", "--out", "x.vtk", "--batch-size", "2")
    assert found["unreadable"] == ["corrupt.png", "words.png"] and sorted(found["images"]) == sorted(GOOD)
    for name in GOOD:
        Path(name).unlink()
    assert "none of 2 pictures can be read" in refused(
        capsys, "encode", ".", "--model", models / "ordered", "--out", "y.vtk"
    )


def test_encode_to_a_target(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = from_pretrained(models / "ordered"), load_images(list(GOOD), size=32)
    quality = psnr(model.decode(model.encode(images)), images)
    goal = float(quality.median())
    arguments = ("encode", *GOOD, "--model", models / "ordered", "--out", "x.vtk", "--batch-size", "4")
    found = run_json(capsys, *arguments, "--target", f"psnr={goal}")
    tokens = Tokens.load("x.vtk")
    assert tokens == model.encode(images, target=("psnr", goal))
    assert found["not_reached"] == [name for name, value in zip(GOOD, quality, strict=True) if value < goal]
    assert found["tokens_per_image"] == float(tokens.lengths.double().mean())
    for words, message in (
        (["--target", "psnr"], "written as psnr=24"),
        (["--target", "pnsr=3"], "did you mean psnr"),
        (["--target", "psnr=nan"], "finite"),
        (["--target", "psnr=20", "--length", "2"], "not allowed with"),
    ):
        assert message in refused(capsys, *arguments, *words)
    fixed = ("encode", "odd.png", "--model", models / "fixed", "--out", "y.vtk", "--target", "psnr=20")
    assert "no order" in refused(capsys, *fixed)


def test_entropy_coding(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", models / "ordered")
    run_json(capsys, "encode", *GOOD, *model, "--out", "plain.vtk")
    run_json(capsys, "encode", *GOOD, *model, "--out", "coded.vtk", "--entropy", "static")
    assert Tokens.load("coded.vtk") == Tokens.load("plain.vtk")
    assert run_json(capsys, "info", "coded.vtk")["entropy"] == "static"
    assert not [path for path in work.iterdir() if path.name.startswith(".")]
    FrequencyTable.fit([Tokens.load("plain.vtk")]).save("table.json")
    run_json(capsys, "encode", *GOOD, *model, "--out", "named.vtk", "--entropy", "table.json")
    assert "name its file" in refused(capsys, "info", "named.vtk")
    assert "name its file" in refused(capsys, "decode", "named.vtk", *model, "--out", "x")
    assert run("info", "named.vtk", "--prior", "table.json") == 0
    assert "alpha.png" in capsys.readouterr().out
    assert run("decode", "named.vtk", *model, "--out", "x", "--prior", "table.json") == 0
    assert "is no frequency table" in refused(
        capsys, "encode", "odd.png", *model, "--out", "y.vtk", "--entropy", "odd.png"
    )
    continuous = ("--model", models / "continuous", "--entropy", "static")
    assert "continuous" in refused(capsys, "encode", "odd.png", *continuous, "--out", "y.vtk")
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert "vistok[codec]" in refused(capsys, "encode", "odd.png", *model, "--out", "y.vtk", "--entropy", "static")


def test_a_cut_file_can_be_recovered(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", models / "ordered")
    assert run("encode", *GOOD, *model, "--out", "x.vtk") == 0
    with TokenFile.open("x.vtk") as file:
        content = Path("x.vtk").read_bytes()
        first = content.index(file.record(0))
        third = first + int(file.sizes[:3].sum())
    Path("cut.vtk").write_bytes(content[: third + 2])
    assert "recover" in refused(capsys, "decode", "cut.vtk", *model, "--out", "x")
    assert "--names away" in refused(capsys, "decode", "cut.vtk", *model, "--out", "x", "--recover", "--names")
    assert run("decode", "cut.vtk", *model, "--out", "some", "--recover") == 0
    assert run("decode", "x.vtk", *model, "--out", "all") == 0
    assert sorted(path.name for path in Path("some").iterdir()) == [f"0000{row}.png" for row in range(3)]
    assert all(path.read_bytes() == (Path("all") / path.name).read_bytes() for path in Path("some").iterdir())
    Path("cut.vtk").write_bytes(content[: first + 1])
    assert "no whole beginning" in refused(capsys, "decode", "cut.vtk", *model, "--out", "y", "--recover")


@pytest.mark.parametrize("name", ["../x.png", "/tmp/x.png", "a/../../x.png", "C:\\x.png", "..\\x.png", "", "x\0.png"])
def test_names_in_a_file_do_not_lead_out_of_the_folder(
    name: str, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = from_pretrained(models / "ordered").encode(load_images("odd.png", size=32))
    with TokenWriter("x.vtk") as writer:
        writer.write(tokens, [name])
    arguments = ("decode", "x.vtk", "--model", models / "ordered", "--out", "deep/out")
    assert "leads out" in refused(capsys, *arguments, "--names")
    assert run(*arguments) == 0
    assert "images 0 to 0, got 1" in refused(capsys, *arguments, "--index", "0,1")


def test_names_that_would_be_one_file_stay_apart(models: Path, work: Path) -> None:
    tokens = from_pretrained(models / "ordered").encode(load_images(["odd.png"] * 4, size=32))
    with TokenWriter("x.vtk") as writer:
        writer.write(tokens, ["a.jpg", "a.png", "a.png", "b/a.png"])
    assert run("decode", "x.vtk", "--model", models / "ordered", "--out", "out", "--names") == 0
    names = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")}
    assert names == {"a.png", "a.png.png", "a.png.2.png", "b/a.png"}


def test_decoding_with_other_weights_is_a_warning(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TiTok(replace(BASE, quantizer="fsq", levels=(4, 3, 5, 2), tail_drop="uniform")).save_pretrained("other")
    assert run("encode", "odd.png", "--model", models / "ordered", "--out", "x.vtk") == 0
    capsys.readouterr()
    assert run("decode", "x.vtk", "--model", "other", "--out", "decoded") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("vistok: warning: x.vtk was encoded with other weights (titok ")
    assert "1 pictures" in captured.out
