"""Training end to end on a CPU: exact resume after a kill, processes that agree, recipes that run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vistok.config import from_dict, load_config
from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.training import TrainConfig, build_task, train
from vistok.training.checkpoint import newest_checkpoint, save_checkpoint
from vistok.training.guard import NonFiniteError
from vistok.training.loop import TrainingRun, dry_run_config

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = {"width": 32, "depth": 1, "num_heads": 2}


def tiny(folder: Path, **changes) -> TrainConfig:
    """A run with everything that has state: codebook with clusters, adversary, EMA, accumulation."""
    spec = {
        "name": "tiny",
        "steps": 6,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "data": {"train": "random:10", "shift": 0.05},
        "model": {
            "family": "titok", "image_size": 32, "patch_size": 16, "decoder_patch_size": 16, "encoder": SIZE,
            "decoder": SIZE, "num_tokens": 4, "codebook_size": 16, "code_dim": 4, "l2_norm": False, "cluster": True,
            "tail_drop": "uniform",
        },
        "loss": {"adversarial_weight": 0.1, "adversarial_start": 2},
        "schedule": {"warmup_steps": 2},
        "checkpoint_every": 2,
        "log_every": 1,
        "preview_every": 0,
        "output_dir": str(folder),
    }  # fmt: skip
    return replace(from_dict(TrainConfig, spec), **changes)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(folder / "tiny" / "checkpoints")
    assert newest is not None
    return load_file(newest / "tensors.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_killed_run_resumes_exactly(tmp_path: Path) -> None:
    script = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_run import tiny\n"
        "from vistok.training import loop, train\n"
        "step = loop.TrainingRun.optimizer_step\n"
        "def slow(self, micros):\n"
        "    time.sleep(0.3); return step(self, micros)\n"
        "loop.TrainingRun.optimizer_step = slow\n"
        "train(tiny(Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("tiny/checkpoints/step_0000000[2-4]")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = tmp_path / "killed/tiny/checkpoints"
    assert newest_checkpoint(torn) is not None and not (torn / "step_00000006").exists()
    result = train(tiny(tmp_path / "killed"))
    train(tiny(tmp_path / "straight"))
    assert result.finished
    assert equal(final_state(tmp_path / "straight"), final_state(tmp_path / "killed"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/tiny/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch; torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_run import first_gradients\n"
        "first_gradients(sys.argv[1])\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in (("two", torchrun), ("one", [sys.executable])):
        done = subprocess.run(
            [*command, str(script), str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one = load_file(tmp_path / "one" / "rank0.safetensors")
    two = [load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in (0, 1)]
    assert equal(two[0], two[1]), "the ranks differ"
    for key in one:
        # Sums over the batch are taken in another order, so what cancels to nearly nothing keeps an error of its summands.
        assert (two[0][key] - one[key]).norm() <= 1e-5 * one[key].norm() + 1e-6, key


def first_gradients(folder: str) -> None:
    """The gradients of the first step, and the codebook after it, of this rank (run by the test above)."""
    from safetensors.torch import save_file

    config = tiny(Path(folder) / "runs", gradient_accumulation=1, loss={"adversarial_weight": 0.1})
    run = TrainingRun(config, build_task(config), resume=False, cpu=True)
    kept = {}

    def spy(phase, update):
        def step(accelerator):
            kept.update(
                {f"{phase}.{n}": p.grad.clone() for n, p in update.module.named_parameters() if p.grad is not None}
            )
            return type(update).step(update, accelerator)

        return step

    for phase, update in run.updates.items():
        update.step = spy(phase, update)
    run.optimizer_step([next(iter(run._loader()))])
    quantizer = run.task.modules["model"].quantizer
    kept |= {"codebook": quantizer.codebook.detach().clone(), "usage": quantizer.usage.clone()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(kept, Path(folder) / f"rank{run.accelerator.process_index}.safetensors")


def test_a_torn_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.full((3,), float(step))}, {"step": step}, keep=5)
    tensors = tmp_path / "step_00000002" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    assert newest_checkpoint(tmp_path).name == "step_00000001"
    assert "step_00000002" in caplog.text and "skipped" in caplog.text
    (tmp_path / "step_00000003").mkdir()
    assert newest_checkpoint(tmp_path).name == "step_00000001"


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_another_configuration_does_not_take_over_a_run(tmp_path: Path) -> None:
    train(tiny(tmp_path, steps=2))
    config = tiny(tmp_path)
    changed = replace(config, model={**config.model, "num_tokens": 5}, optimizer=replace(config.optimizer, lr=1.0))
    with pytest.raises(ConfigError, match=r"model\.num_tokens.*optimizer\.lr"):
        train(changed)
    assert train(changed, resume=False).finished


def test_a_non_finite_loss_stops_the_run_and_keeps_the_batch(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        optimizer=replace(tiny(tmp_path).optimizer, lr=1e30, max_grad_norm=0.0),
        schedule=replace(tiny(tmp_path).schedule, warmup_steps=0),
    )
    with pytest.raises(NonFiniteError, match=r"reconstruction|total|grad_norm") as error:
        train(config)
    saved = sorted((tmp_path / "tiny").glob("nonfinite_step_*/*.safetensors"))
    assert saved and saved[0].parent.name in str(error.value)
    assert load_file(saved[0])["image"].shape == (2, 3, 32, 32)


def test_the_run_learns_and_exports_the_average(tmp_path: Path) -> None:
    config = tiny(
        tmp_path, steps=40, gradient_accumulation=1, loss={}, preview_every=20, eval_every=40, checkpoint_every=40,
        optimizer=replace(tiny(tmp_path).optimizer, lr=3e-3), ema=replace(tiny(tmp_path).ema, decay=0.9),
    )  # fmt: skip
    result = train(config)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/reconstruction"] for line in lines if "train/reconstruction" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert 0.0 < lines[0]["codebook/usage"] <= 1.0 and any("eval/psnr" in line for line in lines)
    model = from_pretrained(result.folder / "final")
    averages = {
        k.removeprefix("average/model/"): v for k, v in final_state(tmp_path).items() if k.startswith("average/model/")
    }
    assert equal(dict(model.state_dict()), averages)
    assert len(list((result.folder / "previews").glob("*.png"))) == 3
    assert load_config(TrainConfig, result.folder / "config.yaml") == config


@pytest.mark.parametrize("kind", ["stage1", "stage2", "single_kl"])
def test_every_recipe_runs_dry(kind: str, tmp_path: Path) -> None:
    """The recipes of the published models, on a model of their kind that is small."""
    small = {"image_size": 32, "patch_size": 16, "encoder": SIZE, "decoder": SIZE, "num_tokens": 4}
    file, changes = {
        "stage1": ("titok_s128_stage1.yaml", {"vqgan": {"image_size": 32, "base_channels": 32, "num_blocks": 1}}),
        "stage2": ("titok_s128.yaml", {"vqgan": {"image_size": 32, "base_channels": 32, "num_blocks": 1}}),
        "single_kl": ("titok_bl64_vae_c16.yaml", {}),
    }[kind]
    config = load_config(TrainConfig, REPOSITORY / "configs" / "titok" / file)
    config = replace(config, model={**config.model, **small, **changes})
    small_run = dry_run_config(config, tmp_path)
    result = TrainingRun(small_run, build_task(small_run), resume=False, cpu=True).train()
    assert result.step == 2 and result.finished
    expected = {"train/reconstruction", "train/total"} | (
        {"train/perceptual", "train/adversarial"} if kind != "stage1" else set()
    )
    assert expected <= result.metrics.keys()
