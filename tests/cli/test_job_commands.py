"""``train`` and ``eval``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import listing, refused, run, run_json

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
        (["steps=2"], "changes like this one come after the file"),
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
