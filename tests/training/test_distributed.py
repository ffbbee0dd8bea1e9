"""Two processes are one: the same gradients, lines and pictures as one process with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask, toy_config

from vistok.config import to_dict
from vistok.training import TrainConfig
from vistok.training.loop import train

ROOT = Path(__file__).resolve().parents[2]


def launch(config: TrainConfig, folder: Path, *options: str) -> str:
    """Run the toy task in two processes on the CPU (``accelerate launch`` needs MPI for these); what they print."""
    file = folder / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    script = Path(__file__).with_name("toy_task.py")
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, file, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "toy" / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "toy" / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_are_one(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path / "two", steps=3, gradient_accumulation=2, checkpoint_every=1, keep_checkpoints=9, log_every=1,
        preview_every=3, eval_every=3,
        loss={"noise": 0.0}, schedule={"kind": "constant"},
    )  # fmt: skip
    config = replace(config, optimizer=replace(config.optimizer, max_grad_norm=0.0))
    # A signal that reaches one process stops both after the same step; then they go on.
    printed = launch(config, tmp_path, "--stop-at", "1")
    assert printed.count("2 processes start after step 0") == printed.count("2 processes start after step 2") == 2
    train(replace(config, output_dir=str(tmp_path / "one")), task=ToyTask)
    one, two = tensors(tmp_path / "one", 1), tensors(tmp_path / "two", 1)
    assert one.keys() == two.keys()
    gradients = [key for key in one if "/exp_avg/" in key]  # (1 - beta) times the first step's gradients
    assert {key.split("/")[1] for key in gradients} == {"model", "discriminator"}
    for key in gradients:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-9)
    # Later steps agree as well, though AdamW's division makes more of a rounding error.
    one, two = tensors(tmp_path / "one", 3), tensors(tmp_path / "two", 3)
    for key in one:
        if key.startswith(("module/model", "average")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"images_per_second"}:
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), key
    for folder in ("previews", "final"):
        names = [sorted(path.name for path in (tmp_path / run / "toy" / folder).iterdir()) for run in ("one", "two")]
        assert names[0] == names[1]
