"""Checkpoints: a kill at any moment leaves a complete one; torn ones are named and skipped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from vistok.errors import CheckpointError
from vistok.training import checkpoint
from vistok.training.checkpoint import (
    checkpoint_folder,
    checkpoint_step,
    damage,
    load_checkpoint,
    load_optimizer_tensors,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(()), "view": torch.arange(6.0).reshape(2, 3).T}


def save(root: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(root, step, TENSORS | {"step": torch.tensor(step)}, {"step": step}, keep=keep)


def test_round_trip_and_keep(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2, 30):
        assert save(tmp_path, step) == checkpoint_folder(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000030"]
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 30)
    tensors, state = load_checkpoint(checkpoint_folder(tmp_path, 30))
    assert state == {"step": 30} and tensors["step"] == 30
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_tensors_that_share_memory_are_written_whole(tmp_path: Path) -> None:
    weight = torch.randn(3)
    folder = save_checkpoint(tmp_path, 1, {"a": weight, "tied": weight}, {}, keep=1)
    assert torch.equal(load_checkpoint(folder)[0]["tied"], weight)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("manifest.json", None, "manifest.json is missing"),
        ("manifest.json", b"{", "its manifest cannot be read"),
        ("manifest.json", b"{}", "its manifest cannot be read"),
        ("state.json", None, "state.json is missing"),
        ("state.json", b'{"step": 8}', "does not have the contents"),
        ("tensors.safetensors", b"", "has 0 bytes"),
    ],
)
def test_a_torn_one_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None, reason: str
) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 9) / file
    path.unlink() if content is None else path.write_bytes(content)
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 5)
    assert f"{checkpoint_folder(tmp_path, 9)} is skipped" in caplog.text and reason in caplog.text
    save(tmp_path, 9)  # takes the torn one's place
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 9)


def test_torn_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.json").unlink()
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def _events(root: Path, step: int, kill_at: int) -> int:
    """Save in a child process that SIGKILLs itself before its ``kill_at``-th file operation; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    try:
        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        checkpoint.save_file = counted(checkpoint.save_file)
        Path.write_text = counted(Path.write_text)
        save(root, step, keep=1)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_at_any_moment_leaves_a_complete_one(tmp_path: Path) -> None:
    finished = False
    for kill_at in range(1, 100):
        root = tmp_path / str(kill_at)
        save(root, 1)
        (checkpoint_folder(root, 2)).mkdir()  # torn, and in the way
        finished = os.WIFEXITED(_events(root, 2, kill_at))
        newest = newest_checkpoint(root)
        assert newest is not None and not damage(newest)
        assert checkpoint_step(newest) == 2 or not finished
        save(root, 3, keep=1)
        assert [path.name for path in root.iterdir()] == ["step_00000003"]  # and nothing is left lying about
        if finished:
            break
    assert finished and kill_at > 12


def test_a_full_disk_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; older ones are intact"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_optimizer_state_by_name() -> None:
    def made(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW([{"params": [module.bias]}, {"params": [module.weight]}])

    (module, optimizer), (fresh_module, fresh) = made(0), made(1)
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, module)
    assert {"exp_avg/weight", "exp_avg_sq/bias", "step/bias"} < tensors.keys()
    load_optimizer_tensors(fresh, fresh_module, tensors)
    restored = optimizer_tensors(fresh, fresh_module)
    assert all(torch.equal(restored[key], value) for key, value in tensors.items())
    with pytest.raises(CheckpointError, match="no trained parameter"):
        load_optimizer_tensors(fresh, fresh_module, {"exp_avg/gone": torch.zeros(2)})
