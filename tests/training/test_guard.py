"""The guard against numbers that are none: what it lets pass, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vistok.training.guard import FiniteGuard, NonFiniteError, Term

INF = float("inf")


def test_skipped_overflows_pass_until_there_are_too_many(tmp_path: Path) -> None:
    guard = FiniteGuard(tmp_path)
    overflow = [Term("model", None, "grad_norm_model", INF)]
    for step in range(19):
        guard.check(step, overflow, {"model": True}, [])
    guard.check(19, [Term("model", None, "grad_norm_model", 1.0)], {"model": False}, [])
    for step in range(20, 39):
        guard.check(step, overflow, {"model": True}, [])
    with pytest.raises(NonFiniteError, match="step 39: grad_norm_model of the model"):
        guard.check(39, overflow, {"model": True}, [])


def test_a_loss_is_no_overflow_of_its_gradient(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="perceptual of the model"):
        FiniteGuard(tmp_path).check(0, [Term("model", 0, "perceptual", INF)], {"model": True}, [{}])


def test_it_keeps_the_micro_batch_of_a_term_and_all_of_a_gradient(tmp_path: Path) -> None:
    shared = torch.randn(2, 3, requires_grad=True)
    micros = [{"image": shared, "again": shared.T, "caption": ["a", "b"]}] * 2
    with pytest.raises(NonFiniteError):
        FiniteGuard(tmp_path / "term", 1).check(4, [Term("model", 1, "total", INF)], {}, micros)
    files = sorted(path.name for path in (tmp_path / "term" / "nonfinite_step_4").iterdir())
    assert files == ["process_1.json", "process_1_micro_1.safetensors"]
    saved = load_file(tmp_path / "term" / "nonfinite_step_4" / files[1])
    assert torch.equal(saved["again"], shared.detach().T)
    with pytest.raises(NonFiniteError):
        FiniteGuard(tmp_path / "norm").check(4, [Term("model", None, "grad_norm_model", INF)], {}, micros)
    assert len(list((tmp_path / "norm" / "nonfinite_step_4").glob("*.safetensors"))) == 2
