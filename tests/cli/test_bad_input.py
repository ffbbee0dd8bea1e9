"""What bad models, pictures, options and token files get: one sentence, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import listing, refused, run
from safetensors.torch import load_file, save_file

from vistok.data import load_images
from vistok.hub import from_pretrained


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
