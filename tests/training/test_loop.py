"""The training loop on a toy task: order, resume to the last bit, guards, logs, dry runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_task import ToyData, ToyTask, toy_config

from vistok.config import load_config, to_dict
from vistok.errors import CheckpointError, ConfigError
from vistok.training import TrainConfig
from vistok.training.checkpoint import save_checkpoint
from vistok.training.config import OptimizerConfig, ScheduleConfig
from vistok.training.guard import NonFiniteError
from vistok.training.loop import TrainingRun, Update, train

SCRIPT = Path(__file__).with_name("toy_task.py")
ROOT = Path(__file__).resolve().parents[2]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def state(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")


def file_bytes(folder: Path, step: int) -> bytes:
    """Everything that a checkpoint holds: weights, averages, optimizers, running averages."""
    return (folder / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors").read_bytes()


def history(folder: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without the timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def test_a_run_leaves_what_it_should(tmp_path: Path) -> None:
    config = toy_config(tmp_path, checkpoint_every=2, preview_every=4, eval_every=3, gradient_accumulation=2)
    result = train(config, task=ToyTask)
    assert result.finished and result.step == 6 and result.folder == tmp_path / "toy"
    assert checkpoints(result.folder) == ["step_00000004", "step_00000006"]  # the last two
    previews = sorted(path.name for path in (result.folder / "previews").iterdir())
    assert previews == ["step_00000001.png", "step_00000004.png", "step_00000006.png"]
    assert load_config(TrainConfig, result.folder / "config.yaml") == config
    lines = history(result.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 6]
    first, evaluation = lines[0], lines[2]
    assert set(first) == {"step", "lr/model", "lr/discriminator"} | {
        f"train/{name}" for name in ("total", "total_discriminator", "reconstruction", "adversarial", "logits_real")
    } | {"train/grad_norm_model", "train/grad_norm_discriminator"} | {
        f"codebook/{name}" for name in ("usage", "entropy_bits", "perplexity", "dead_codes")
    }
    assert set(evaluation) == {"step", "eval/mse"}
    assert first["lr/model"] == 0.0 and lines[1]["lr/model"] == pytest.approx(0.005)  # warm-up of two steps
    assert result.metrics["eval/mse"] == lines[-1]["eval/mse"]
    assert result.metrics["images_per_second"] > 0
    final = load_file(result.folder / "final" / "model.safetensors")
    saved = state(result.folder, 6)
    assert all(torch.equal(value, saved[f"average/model/{key}"]) for key, value in final.items())
    assert not torch.equal(saved["average/model/encoder.weight"], saved["module/model/encoder.weight"])
    assert torch.isneginf(saved["average/model/mask"]).any() and not saved["average/model/mask"].isnan().any()
    assert saved["average/model/seen"] == saved["module/model/seen"] == 12


def test_phases_of_a_micro_batch_follow_each_other(tmp_path: Path) -> None:
    tasks: list[ToyTask] = []

    class Recording(ToyTask):
        def __init__(self, config: TrainConfig) -> None:
            super().__init__(config)
            tasks.append(self)

    train(toy_config(tmp_path, steps=2, gradient_accumulation=2, loss={"start": 1}), task=Recording)
    seen = tasks[0].seen
    assert [call[:2] for call in seen] == [
        ("model", 0),
        ("model", 0),
        *[("model", 1), ("discriminator", 1), ("model", 1), ("discriminator", 1)],
    ]
    assert seen[2][2] == seen[3][2] != seen[4][2] == seen[5][2]
    assert tasks[0].prepared == 1
    saved = state(tmp_path / "toy", 2)
    steps = {key: value.item() for key, value in saved.items() if key.startswith("optimizer") and "/step/" in key}
    assert {value for key, value in steps.items() if "/model/" in key} == {2.0}
    assert {value for key, value in steps.items() if "/discriminator/" in key} == {1.0}


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    # AdamW's first average of a gradient is (1 - beta) times the gradient.
    gradients = []
    for parts in (1, 2, 4):
        config = toy_config(tmp_path / str(parts), steps=1, loss={"noise": 0.0}, gradient_accumulation=parts)
        train(replace(config, optimizer=OptimizerConfig(max_grad_norm=0.0)), task=ToyTask)
        saved = state(tmp_path / str(parts) / "toy", 1)
        gradients.append({key: value for key, value in saved.items() if "/exp_avg/" in key})
    for other in gradients[1:]:
        for key, value in gradients[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-9)


def test_a_loss_trains_its_own_module_only(tmp_path: Path) -> None:
    run = TrainingRun(toy_config(tmp_path), ToyTask(toy_config(tmp_path)))
    batch = run.task.collate([ToyData()[index, 0] for index in range(4)])
    run._backward("model", batch, 0, last=True)
    assert all(parameter.grad is None for parameter in run.task.modules["discriminator"].parameters())
    assert all(parameter.requires_grad for parameter in run.task.modules["discriminator"].parameters())
    model = [parameter.grad.clone() for parameter in run.task.modules["model"].parameters()]
    run._backward("discriminator", batch, 0, last=True)
    after = [parameter.grad for parameter in run.task.modules["model"].parameters()]
    assert all(torch.equal(*pair) for pair in zip(model, after, strict=True))


def test_a_killed_run_resumes_to_the_last_bit(tmp_path: Path) -> None:
    changes = {"steps": 9, "checkpoint_every": 3, "loss": {"noise": 0.1, "start": 2}, "gradient_accumulation": 2}
    straight = train(toy_config(tmp_path / "straight", **changes), task=ToyTask)
    config = toy_config(tmp_path / "killed", **changes)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), "--kill-at", "7"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    folder = tmp_path / "killed" / "toy"
    assert checkpoints(folder) == ["step_00000003", "step_00000006"]
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 7, "train/total": 1.0}\n{"step": 8, "tr')  # later than the checkpoint, and torn
    resumed = train(config, task=ToyTask)
    assert resumed.step == 9
    assert file_bytes(folder, 9) == file_bytes(straight.folder, 9)
    assert (folder / "final/model.safetensors").read_bytes() == (
        straight.folder / "final/model.safetensors"
    ).read_bytes()
    states = [json.loads((f / "checkpoints/step_00000009/state.json").read_text()) for f in (folder, straight.folder)]
    assert states[0]["updates"] == states[1]["updates"]
    assert history(folder) == history(straight.folder)


def test_a_torn_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = toy_config(tmp_path, checkpoint_every=2)
    straight = file_bytes(train(config, task=ToyTask).folder, 6)
    torn = tmp_path / "toy" / "checkpoints" / "step_00000006" / "tensors.safetensors"
    torn.write_bytes(straight[:-1] + bytes([straight[-1] ^ 1]))
    caplog.clear()
    train(config, task=ToyTask)
    assert "step_00000006 is skipped: tensors.safetensors does not have the contents" in caplog.text
    assert file_bytes(tmp_path / "toy", 6) == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_the_run_resumes(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(ToyTask):
        def loss(self, phase: str, batch: Any, step: int, generator: torch.Generator) -> Any:
            if step == 2 and phase == "model":
                os.kill(os.getpid(), number)
            return super().loss(phase, batch, step, generator)

    before = signal.getsignal(number)
    straight = train(toy_config(tmp_path / "straight"), task=ToyTask)
    config = toy_config(tmp_path)
    result = train(config, task=Interrupted)
    assert (result.step, result.finished) == (3, False)
    assert signal.Signals(number).name in caplog.text and "resumes" in caplog.text
    assert signal.getsignal(number) is before
    assert not (result.folder / "final").exists()
    assert train(config, task=ToyTask).finished
    assert file_bytes(result.folder, 6) == file_bytes(straight.folder, 6)


def test_what_may_change_and_what_may_not(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    train(config, task=ToyTask)
    free = replace(config, steps=8, log_every=1, checkpoint_every=4, gradient_accumulation=2)
    assert train(free, task=ToyTask).step == 8
    shutil.move(tmp_path / "toy", tmp_path / "renamed")
    moved = replace(free, name="renamed")
    assert train(moved, task=ToyTask).step == 8  # has been finished: nothing to do
    other = replace(moved, optimizer=replace(config.optimizer, lr=0.5), model={"family": "toy", "depth": 3})
    with pytest.raises(ConfigError, match=r"model\.depth \(None -> 3\), optimizer\.lr \(0\.01 -> 0\.5\)"):
        train(other, task=ToyTask)
    assert train(other, task=ToyTask, resume=False).step == 8
    assert [line["step"] for line in history(tmp_path / "renamed")] == list(range(1, 9))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    train(config, task=ToyTask)

    class Wider(ToyTask):
        def __init__(self, config: TrainConfig) -> None:
            super().__init__(config)
            self.modules["discriminator"] = nn.Linear(12, 1)

    with pytest.raises(CheckpointError, match="does not fit module/discriminator"):
        train(replace(config, steps=7), task=Wider)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "toy" / "checkpoints", 3, {}, {"step": 3}, keep=1)
    with pytest.raises(CheckpointError, match="another version of vistok"):
        train(toy_config(tmp_path), task=ToyTask)


def test_without_an_average_the_trained_weights_are_exported(tmp_path: Path) -> None:
    result = train(replace(toy_config(tmp_path, ema={"enabled": False}), eval_every=2), task=ToyTask)
    final, saved = load_file(result.folder / "final" / "model.safetensors"), state(result.folder, 6)
    assert all(torch.equal(value, saved[f"module/model/{key}"]) for key, value in final.items())
    assert not any(key.startswith("average") for key in saved)


def test_a_nan_stops_the_run_and_keeps_the_batch(tmp_path: Path) -> None:
    config = toy_config(tmp_path, loss={"poison": 3}, gradient_accumulation=2, checkpoint_every=2)
    with pytest.raises(
        NonFiniteError, match=r"step 3: grad_norm_model of the model, reconstruction of the model, total"
    ):
        train(config, task=ToyTask)
    folder = tmp_path / "toy" / "nonfinite_step_3"
    batch = load_file(folder / "process_0_micro_1.safetensors")
    assert batch["image"].shape == (4, 12) and {"index", "fake"} < batch.keys()
    report = json.loads((folder / "process_0.json").read_text())
    assert ["model", 0, "reconstruction", "nan"] in report["terms"] and "toy" in report["other"]["0"]["name"]
    assert checkpoints(tmp_path / "toy") == ["step_00000002"]


def test_bf16_keeps_fp32_weights(tmp_path: Path) -> None:
    saved = state(train(toy_config(tmp_path, mixed_precision="bf16"), task=ToyTask).folder, 6)
    assert {value.dtype for value in saved.values()} == {torch.float32, torch.int64}


def test_what_this_machine_cannot_do_is_said(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="fp16 needs a GPU"):
            train(toy_config(tmp_path, mixed_precision="fp16"), task=ToyTask)
    with pytest.raises(ConfigError, match="did you mean tensorboard"):
        train(toy_config(tmp_path, trackers=["tensorbord"]), task=ToyTask)
    with pytest.raises(ConfigError, match="clearml is not installed"):
        train(toy_config(tmp_path, trackers=["clearml"]), task=ToyTask)


def test_tensorboard_gets_the_lines(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(toy_config(tmp_path, trackers=["tensorboard"]), task=ToyTask)
    events = accumulator.EventAccumulator(str(tmp_path / "toy" / "trackers" / "toy"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/total")] == [1, 2, 4, 6]


def test_a_dry_run_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = toy_config(tmp_path, steps=1000, mixed_precision="fp16", trackers=["tensorboard"], eval_every=500)
    result = train(config, task=ToyTask, dry_run=True)
    assert result.step == 2 and result.finished and "eval/mse" in result.metrics
    assert not list(tmp_path.iterdir()) and not result.folder.exists()
    assert "dry run of toy: 2 steps of 2 images" in caplog.text
    assert "checkpoints, config.yaml, final, metrics.jsonl, previews" in caplog.text
    with pytest.raises(TypeError, match="pass the task's class"):
        train(config, task=ToyTask(config), dry_run=True)


def test_workers_do_not_change_the_run(tmp_path: Path) -> None:
    alone = train(toy_config(tmp_path / "alone"), task=ToyTask)
    with_workers = toy_config(tmp_path / "workers", data={"train": "random:16", "num_workers": 2})
    assert file_bytes(train(with_workers, task=ToyTask).folder, 6) == file_bytes(alone.folder, 6)


def test_compiled_modules_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = state(train(toy_config(tmp_path / "plain", steps=1), task=ToyTask).folder, 1)
    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend="eager"))  # no C++ compiler
    compiled = state(train(toy_config(tmp_path / "compiled", steps=1, compile=True), task=ToyTask).folder, 1)
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value)


class TestLossScale:
    """fp16's loss scale, which works on the CPU too, by itself."""

    def make(self, scale: float = 8.0) -> Update:
        module = nn.Linear(2, 1, bias=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        return Update(module, OptimizerConfig(lr=0.1), ScheduleConfig(), total_steps=10, scaler=scaler)

    def backward(self, update: Update, value: float) -> None:
        update.scaler.scale(update.module(torch.full((1, 2), value)).sum()).backward()

    def test_the_norm_is_that_of_the_unscaled_gradient(self, tmp_path: Path) -> None:
        run = TrainingRun(toy_config(tmp_path), ToyTask(toy_config(tmp_path)))
        update = self.make()
        self.backward(update, 3.0)
        norm, skipped = update.step(run.accelerator)
        assert norm == pytest.approx(18**0.5) and not skipped and update.count == 1

    def test_an_overflow_skips_one_module_and_leaves_the_others_scale(self, tmp_path: Path) -> None:
        run = TrainingRun(toy_config(tmp_path), ToyTask(toy_config(tmp_path)))
        one, other = self.make(), self.make()
        self.backward(one, float("inf"))
        self.backward(other, 1.0)
        weight = one.module.weight.detach().clone()
        assert one.step(run.accelerator)[1]
        norm, skipped = other.step(run.accelerator)
        assert torch.equal(one.module.weight, weight) and one.count == 0 and one.rate == 0.1
        assert (one.scaler.get_scale(), other.scaler.get_scale()) == (4.0, 8.0)
        assert norm == pytest.approx(2**0.5) and not skipped

    def test_its_state_is_restored(self, tmp_path: Path) -> None:
        run = TrainingRun(toy_config(tmp_path), ToyTask(toy_config(tmp_path)))
        before, after = self.make(), self.make(scale=64.0)
        for value in (1.0, float("inf"), 2.0):
            self.backward(before, value)
            before.step(run.accelerator)
        tensors, rest = before.state()
        after.load({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(rest)))
        assert after.scaler.get_scale() == 4.0 and after.count == 2 and after.rate == before.rate
        assert after.optimizer.state_dict()["state"].keys() == before.optimizer.state_dict()["state"].keys()
