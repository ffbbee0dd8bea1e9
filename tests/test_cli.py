"""Every command of ``vistok``, in this process, on pictures and models made here; and what bad input gets."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import BASE, make

from vistok.cli import build_parser, main
from vistok.data import load_images
from vistok.entropy import FrequencyTable
from vistok.hub import from_pretrained, to_published
from vistok.metrics import psnr
from vistok.models.titok import TiTok
from vistok.registry import list_models
from vistok.token_file import TokenFile, TokenWriter
from vistok.tokens import Tokens

COMMANDS = (
    "models",
    "info",
    "convert",
    "reconstruct",
    "encode",
    "decode",
    "tokenize",
    "train",
    "eval recon",
    "eval curve",
    "doctor",
    "demo",
)
TRAIN = """\
name: tiny
steps: 2
batch_size: 4
data: {train: "random:10"}
model:
  family: titok
  image_size: 32
  patch_size: 16
  decoder_patch_size: 16
  encoder: {width: 32, depth: 1, num_heads: 2}
  decoder: {width: 32, depth: 1, num_heads: 2}
  num_tokens: 4
  codebook_size: 16
  code_dim: 4
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``ordered``, ``fixed``, ``continuous`` and ``text`` with tiny models that tell pictures apart."""
    root = tmp_path_factory.mktemp("models")
    kinds = {"ordered": "fsq_ordered", "fixed": "vq_pixels", "continuous": "gaussian", "text": "vq_text"}
    for folder, kind in kinds.items():
        model = make(kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("encoder.", "to_latents", "quantizer.codebook")) and parameter.ndim > 1:
                    parameter.mul_(6.0)
        model.save_pretrained(root / folder)
    return root


@pytest.fixture
def work(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures of all sorts; models are beside it as ``../models``-like absolute paths."""
    monkeypatch.chdir(tmp_path)
    pixels = smooth(37, 53)
    Image.fromarray(pixels).save("odd.png")
    Image.fromarray(smooth(1, 200)).save("line.png")
    Image.fromarray(smooth(64, 64)).convert("L").save("grey.jpg")
    Image.fromarray(smooth(40, 40)).convert("P").save("palette.gif")
    rgba = np.dstack([smooth(20, 31), np.tile(np.linspace(0, 255, 31), (20, 1)).astype(np.uint8)])
    Image.fromarray(rgba).save("alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, the picture is turned right by a quarter
    Image.fromarray(np.rot90(pixels)).save("turned.png", exif=exif)
    (tmp_path / "corrupt.png").write_bytes(Path("odd.png").read_bytes()[:300])
    (tmp_path / "words.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    return tmp_path


GOOD = ("odd.png", "line.png", "grey.jpg", "palette.gif", "alpha.png", "turned.png")


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(rows / 9 + k) * np.cos(columns / (7 + k)) for k in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The result of a command that works; nothing but JSON may be on its standard output."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail: status 2, one error, no traceback, no file made or changed. The error's text."""
    before = listing(Path.cwd())
    capsys.readouterr()
    try:
        status = run(*arguments)
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2, captured
    assert "Traceback" not in captured.err + captured.out
    errors = re.findall(r"^vistok[a-z ]*: error: .+$", captured.err, flags=re.MULTILINE)
    assert len(errors) == 1, captured.err
    assert captured.out == ""
    assert listing(Path.cwd()) == before
    return captured.err[captured.err.index(errors[0]) :]


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*command.split(), "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "example" in text and f"vistok {command}" in text.split("example", 1)[1]
    for line in text.split("example", 1)[1].splitlines():
        if line.strip().startswith("vistok "):
            build_parser().parse_args(shlex.split(line, comments=True)[1:])
    if command != "demo":
        assert "--json" in text and "--debug" in text


def test_the_first_page_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(re.search(rf"^ +{command.split()[0]}\b", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("eval",), ("nonsense",), ("models", "--nonsense"), ("info",)])
def test_wrong_command_lines(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], work: Path) -> None:
    refused(capsys, *arguments)


def test_the_installed_command_gives_the_status(work: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "vistok.cli", "info", "nowhere.vtk"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("vistok: error: ") and len(process.stderr.splitlines()) == 1


# models, info, doctor.


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_models())
    found = run_json(capsys, "models", "titok_*", "--kind", "tokenizer")
    assert [card["name"] for card in found] == list_models("titok_*", kind="tokenizer")
    assert found[0].keys() >= {"family", "config", "licence", "metrics", "buildable"}
    everything = run_json(capsys, "models", "--all")
    assert {card["name"] for card in everything} == set(list_models(buildable=False))
    assert run_json(capsys, "models", "no such model") == []
    assert run("models", "--markdown") == 0 and "| `titok_l32.imagenet` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["titok_s128.imagenet", "titok_tiny_32.emoji", "digit_ar_tiny.emoji", "rar_b.imagenet"]
)
def test_info_of_a_registered_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", name) == 0 and name in capsys.readouterr().out
    found = run_json(capsys, "info", name)
    assert found["name"] == name and ("values" in found) == found["buildable"]


def test_info_of_a_folder_and_a_file(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_json(capsys, "info", models / "ordered")
    assert folder == run_json(capsys, "info", models / "ordered" / "model.safetensors")
    model = from_pretrained(models / "ordered")
    assert folder["values"] == sum(value.numel() for value in model.state_dict().values())
    assert folder["weight_hash"] == model.weight_hash() and folder["config"]["num_tokens"] == 6


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert "vistok 0" in text and "torch " in text and "emoji:" in text
    found = run_json(capsys, "doctor")
    assert found["healthy"] and found["data"]["emoji:"] > 1000 and "eval" in found["extras"]


# convert.


def test_convert_there_and_back(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = to_published(from_pretrained(models / "fixed"))
    torch.save(state, "official.bin")
    first = run_json(capsys, "convert", "official.bin", "ours")
    assert first["layout"] == "vistok" and load_file("ours/model.safetensors").keys() != state.keys()
    second = run_json(capsys, "convert", "ours", "again.safetensors", "--to", "published")
    again = load_file("again.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    third = run_json(
        capsys, "convert", "again.safetensors", "titok_l32.imagenet"
    )  # a folder may have a dot in its name
    assert first["weight_hash"] == second["weight_hash"] == third["weight_hash"]
    assert from_pretrained("titok_l32.imagenet").weight_hash() == first["weight_hash"]
    assert run("convert", "again.safetensors", "sub/folder") == 0 and "wrote" in capsys.readouterr().out


def test_convert_refuses(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "looks like a file" in refused(capsys, "convert", models / "fixed", "x.safetensors")
    assert "looks like a file" in refused(capsys, "convert", models / "fixed", "odd.png")
    assert ".safetensors, got" in refused(capsys, "convert", models / "fixed", "x.bin", "--to", "published")
    assert "not part of it" in refused(capsys, "convert", models / "ordered", "x.safetensors", "--to", "published")


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


# train, eval.


def test_a_dry_run_trains_and_keeps_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(TRAIN)
    before = listing(work)
    found = run_json(capsys, "train", "tiny.yaml", "optimizer.lr=1e-3", "data.train=emoji:", "--dry-run")
    assert found["step"] == 2 and found["metrics"]
    assert listing(work) == before
    assert run("train", "tiny.yaml", "--dry-run") == 0 and "dry run: nothing was kept" in capsys.readouterr().out


def test_a_trained_model_can_be_used(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(TRAIN)
    found = run_json(capsys, "train", "tiny.yaml", "output_dir=out", "preview_every=0")
    assert found["step"] == 2 and Path(found["folder"]) == Path("out/tiny")
    assert run("reconstruct", "odd.png", "--model", "out/tiny/final") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["empty"], "cannot read the configuration empty"),
        (["words.png"], "wanted a mapping"),
        (["corrupt.png"], "cannot read the configuration"),
        (["tiny.yaml", "stepz=3"], "unknown key `stepz`; did you mean steps"),
        (["tiny.yaml", "data.trian=emoji:"], "unknown key `data.trian`; did you mean train"),
        (["tiny.yaml", "model.num_token=3"], "unknown key `num_token`; did you mean num_tokens"),
        (["tiny.yaml", "loss.reconstructoin=l1"], "unknown key `reconstructoin`; did you mean reconstruction"),
        (["tiny.yaml", "steps"], "is not of the form key=value"),
        (["tiny.yaml", "steps=[1"], "not valid YAML"),
        (["tiny.yaml", "steps=many"], "`steps` wants int, got 'many'"),
        (["tiny.yaml", "steps=0"], "steps is at least 1"),
        (["tiny.yaml", "optimizer.lr=-1"], "lr"),
        (["tiny.yaml", "optimizer.betas=[0.9]"], "`optimizer.betas` wants a list of 2"),
        (["tiny.yaml", "mixed_precision=fp8"], "`mixed_precision` is one of no, fp16, bf16"),
        (["tiny.yaml", "model.family=titko"], "did you mean titok"),
        (["tiny.yaml", "model.name=titok_l33.imagenet"], "did you mean titok_l32.imagenet"),
        (["tiny.yaml", "model.patch_size=5"], "not a multiple of patch_size 5"),
        (["tiny.yaml", "model.patch_size=0"], "patch_size is at least 1"),
        (["tiny.yaml", "model.patch_size=-16"], "patch_size is at least 1"),
        (["tiny.yaml", "model.codebook_size=0"], "codebook_size is at least 1"),
        (["tiny.yaml", "model.encoder.width=33"], "the heads divide the width"),
        (["tiny.yaml", "model.encoder.num_heads=0"], "the heads divide the width"),
        (["tiny.yaml", "model.encoder.depth=0"], "at least 1"),
        (["tiny.yaml", "model.vqgan.base_channels=0"], "base_channels is at least 1"),
        (["tiny.yaml", "model.vqgan.multipliers=[]"], "multipliers are at least 1"),
        (["tiny.yaml", "model.quantizer=fsq", "model.levels=[1, 2, 2, 2]"], "levels are two or more"),
        (["tiny.yaml", "name=a/b"], "without slashes"),
        (["tiny.yaml", "task=generator"], "say whose tokens of them are wanted, by loss.tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_refuses(arguments: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(TRAIN)
    assert message in refused(capsys, "train", *arguments, "--dry-run")


def test_eval_recon(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "eval",
        "recon",
        "--model",
        models / "ordered",
        "--data",
        "random:40",
        "--features",
        "none",
        "--no-lpips",
    )
    found = run_json(capsys, *arguments, "--json-file", "sub/result.json")
    assert json.loads(Path("sub/result.json").read_text()) == found
    assert (
        np.isfinite(found["psnr"]) and found["images"] == found["data"]["size"] == 4 and found["tokens_per_image"] == 6
    )
    assert run(*arguments, "--length", "2", "--limit", "3") == 0 and "PSNR" in capsys.readouterr().out
    assert run(*arguments, "--target", "psnr=5") == 0 and "reach psnr 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nonsense:5"], "unknown data source"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--data", "folder:empty"], "empty"),
        (["--data", "random:5", "--protocol", "nonsense"], "unknown protocol"),
        (["--data", "random:5", "--limit", "0"], "limit"),
        (["--data", "random:5", "--batch-size", "0"], "batch"),
        (["--data", "random:5", "--length", "7"], "7"),
        (["--data", "random:5", "--length", "3", "--target", "psnr=20"], "without a length"),
        (["--data", "random:5", "--target", "psnr"], "written as psnr=24"),
        (["--data", "random:5", "--features", "nonsense"], "nonsense"),
        (["--data", "random:5", "--features", "inception", "--weights", "nowhere.pth"], "nowhere.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_eval_refuses(
    arguments: list[str], message: str, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "eval", "recon", "--model", models / "ordered", *arguments, "--json-file", "result.json")
    assert message in error


# Bad input of the commands that read pictures, models and token files.


def _checkpoint(name: str) -> Callable[[Path], str]:
    def prepare(models: Path) -> str:
        model = Path("bad")
        model.mkdir()
        for file in ("config.json", "model.safetensors"):
            (model / file).write_bytes((models / "ordered" / file).read_bytes())
        state = load_file(model / "model.safetensors")
        if name == "random":
            save_file({f"layer{i}": torch.rand(3, 3) for i in range(4)}, model / "model.safetensors")
        elif name == "torn":
            (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
        elif name == "missing":
            state.pop("conv_out.bias")
            save_file(state, model / "model.safetensors")
        elif name == "config":
            (model / "config.json").write_text('{"family": "titok", "config": {"num_tokenz": 3}}')
        elif name == "json":
            (model / "config.json").write_text("{")
        return "bad"

    return prepare


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda models: "nowhere", "there is no file or folder nowhere"),
        (lambda models: "titok_l33.imagenet", "titok_l32.imagenet"),
        (lambda models: "nobody/no-such-model", "cannot be fetched"),
        (lambda models: "titok_tiny_32.emoji", "no weights"),
        (lambda models: "empty", "has none of"),
        (lambda models: "odd.png", "is not a checkpoint"),
        (lambda models: "words.png", "is not a checkpoint"),
        (_checkpoint("random"), "4 unexpected: layer0"),
        (_checkpoint("torn"), "cannot be read"),
        (_checkpoint("missing"), "1 missing: conv_out.bias"),
        (_checkpoint("config"), "unknown key `num_tokenz`"),
        (_checkpoint("json"), "config.json"),
    ],
)
@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "info", "convert", "eval"])
def test_wrong_models(
    command: str,
    prepare: Callable[[Path], str],
    message: str,
    models: Path,
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = prepare(models)
    if command == "info" and model == "titok_tiny_32.emoji":
        pytest.skip("a registered name is known without weights")
    from_pretrained(models / "ordered").encode(load_images("odd.png", size=32)).save("good.vtk")
    arguments = {
        "reconstruct": ("reconstruct", "odd.png", "--model", model, "--out", "new/x.png"),
        "encode": ("encode", "odd.png", "--model", model, "--out", "new/x.vtk"),
        "decode": ("decode", "good.vtk", "--model", model, "--out", "new"),
        "info": ("info", model),
        "convert": ("convert", model, "new"),
        "eval": ("eval", "recon", "--model", model, "--data", "random:5", "--json-file", "new/x.json"),
    }
    assert message in refused(capsys, *arguments[command])


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (["nowhere.png"], "there is no such file"),
        (["odd.png", "corrupt.png"], "cannot read the picture corrupt.png"),
        (["words.png"], "not a picture of a known format"),
        (["empty"], "there are no pictures in empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize(("command", "out"), [("reconstruct", "new/x.png"), ("encode", "new/x.vtk")])
def test_wrong_pictures(
    command: str,
    out: str,
    pictures: list[str],
    message: str,
    models: Path,
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, command, *pictures, "--model", models / "ordered", "--out", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "odd.png", "--out", "x.png", "--lengths", "0"], "1 or more"),
        (["reconstruct", "odd.png", "--out", "x.png", "--lengths", "a,b"], "1 or more"),
        (["reconstruct", "odd.png", "--out", "x.png", "--lengths", ""], "1 or more"),
        (["reconstruct", "odd.png", "--out", "x.png", "--lengths", "1,7"], "cannot decode 7 tokens"),
        (["reconstruct", "odd.png", "--out", "x.nonsense"], "cannot be written"),
        (["reconstruct", "odd.png", "--out", "empty"], "empty"),
        (["reconstruct", "odd.png", "--out", "odd.png/x.png"], "odd.png"),
        (["reconstruct", "odd.png", "--out", "x.png", "--batch-size", "0"], "1 or more"),
        (["reconstruct", "odd.png", "--out", "x.png", "--crop", "nonsense"], "nonsense"),
        (["encode", "odd.png", "--out", "x.vtk", "--length", "0"], "1 or more"),
        (["encode", "odd.png", "--out", "x.vtk", "--length", "-1"], "--length"),
        (["encode", "odd.png", "--out", "empty"], "empty"),
        (["encode", "odd.png", "--out", "odd.png/x.vtk"], "odd.png"),
        (["encode", "odd.png", "--out", "x.vtk", "--device", "nonsense"], "--device nonsense cannot be used here"),
        (["encode", "odd.png", "--out", "x.vtk", "--device", "meta"], "--device meta cannot be used here"),
        (["encode", "odd.png", "--out", "x.vtk", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(
    arguments: list[str], message: str, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments, "--model", models / "ordered")


def test_a_fixed_length_cannot_be_cut(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", models / "fixed")
    assert "always gives 6 tokens" in refused(capsys, "encode", "odd.png", *model, "--out", "x.vtk", "--length", "3")
    assert "always takes 6" in refused(capsys, "reconstruct", "odd.png", *model, "--out", "x.png", "--lengths", "3")
    assert run("encode", "odd.png", *model, "--out", "full.vtk") == 0
    assert "fixed length of 6" in refused(capsys, "decode", "full.vtk", *model, "--out", "x", "--length", "3")


@pytest.mark.parametrize("damage", ["nowhere", "foreign", "torn", "flipped", "newer", "empty"])
@pytest.mark.parametrize("command", ["decode", "info"])
def test_wrong_token_files(
    damage: str, command: str, models: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_pretrained(models / "ordered").encode(load_images("odd.png", size=32)).save("x.vtk")
    content = bytearray(Path("x.vtk").read_bytes())
    if damage == "nowhere":
        Path("x.vtk").unlink()
    else:
        changed = {
            "foreign": b"PNG and then some more bytes than a header has",
            "torn": bytes(content[:-2]),
            "flipped": bytes(content[:-2]) + bytes([content[-2] ^ 1, content[-1]]),
            "newer": bytes(content[:8]) + b"\xff" + bytes(content[9:]),
            "empty": b"",
        }
        Path("x.vtk").write_bytes(changed[damage])
    arguments = (
        ("decode", "x.vtk", "--model", models / "ordered", "--out", "new") if command == "decode" else ("info", "x.vtk")
    )
    assert "x.vtk" in refused(capsys, *arguments)


def test_tokens_of_another_model(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ordered", "continuous"):
        assert run("encode", "odd.png", "--model", models / name, "--out", f"{name}.vtk") == 0
    for tokens, model, message in (
        ("ordered.vtk", "fixed", "codebook"),
        ("continuous.vtk", "fixed", "continuous latents"),
        ("ordered.vtk", "continuous", "ids"),
    ):
        before = listing(work)
        capsys.readouterr()
        assert run("decode", tokens, "--model", models / model, "--out", "new") == 2
        assert message in capsys.readouterr().err and listing(work) == before


def test_a_generator_is_no_tokenizer(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vistok.hub import create_model

    create_model("digit_ar_tiny.emoji", width=32, depth=1).save_pretrained("generator")
    assert "a tokenizer is wanted" in refused(capsys, "encode", "odd.png", "--model", "generator", "--out", "x.vtk")
    assert "a tokenizer is wanted" in refused(capsys, "eval", "recon", "--model", "generator", "--data", "random:5")


def test_errors_as_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "nowhere", "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": captured.err[len("vistok: error: ") : -1], "kind": "CheckpointError"}


def test_debug_shows_where_an_error_comes_from(work: Path) -> None:
    from vistok.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run("info", "nowhere", "--debug")


def test_an_interrupted_command_says_so(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vistok.hub.from_pretrained", interrupt)
    assert run("encode", "odd.png", "--model", models / "ordered", "--out", "x.vtk") == 130
    assert capsys.readouterr().err == "interrupted\n" and not Path("x.vtk").exists()


def test_an_interrupted_write_leaves_the_old_file(
    models: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", models / "ordered")
    assert run("encode", "odd.png", *model, "--out", "x.vtk") == 0
    assert run("reconstruct", "odd.png", *model, "--out", "x.png") == 0
    before = listing(work)

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert run("encode", "alpha.png", *model, "--out", "x.vtk") == 2
    assert run("reconstruct", "alpha.png", *model, "--out", "x.png") == 2
    assert listing(work) == before
