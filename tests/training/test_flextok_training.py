"""Training FlexTok: draws of each picture by itself, alignment with a teacher, and prefixes that are worth more and more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vistok.config import embedded_config, from_dict, load_config
from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.metrics.pixel import psnr
from vistok.training import TrainConfig, build_task
from vistok.training.loop import train

TINY: dict[str, Any] = {
    "family": "flextok",
    "vae": {"latent_channels": 4, "block_channels": [32, 32]},
    "grid_size": [4, 4],
    "patch_size": 2,
    "num_tokens": 8,
    "levels": [4, 3, 2],
    "encoder": {"width": 32, "depth": 1, "head_dim": 16},
    "decoder": {"width": 32, "depth": 2, "head_dim": 16},
    "sampling": {"steps": 2},
}


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        "name": "tiny",
        "model": TINY,
        "data": {"train": "random:8"},
        "loss": {"pretrained": False},
        "steps": 4,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "preview_every": 4,
        "output_dir": str(folder),
    }
    return from_dict(TrainConfig, {**values, **changes})


def test_a_batch_is_its_parts(tmp_path: Path) -> None:
    task = build_task(tiny_config(tmp_path))
    for module in task.modules.values():
        module.train()
    task.wrapped = dict(task.modules)
    data = task.dataset(train=True)
    with torch.no_grad():  # away from the zero heads of a fresh model, which hide the draws
        for parameter in task.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def loss(indices: list[int]) -> torch.Tensor:
        batch = task.collate([data[index, 0] for index in indices])
        return task.loss("model", batch, 3, torch.Generator())[0]

    torch.testing.assert_close(loss([0, 1, 2, 3]), (loss([0, 1]) + loss([2, 3])) / 2)
    assert loss([0, 1]) != loss([2, 3])


def test_the_autoencoder_stays_as_it_is_and_the_run_resumes_exactly(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "straight", schedule={"kind": "constant"})
    before = build_task(config).model.vae.state_dict()
    straight = train(config)
    train(replace(config, output_dir=str(tmp_path / "parts"), steps=2))
    resumed = train(replace(config, output_dir=str(tmp_path / "parts")))
    one, two = (from_pretrained(result.folder / "final") for result in (straight, resumed))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(before[name], value) for name, value in one.vae.state_dict().items())
    assert (straight.folder / "previews" / "step_00000004.png").is_file()


def test_alignment_with_a_teacher(tmp_path: Path) -> None:
    loss = {"pretrained": False, "alignment": "lite0"}
    with pytest.raises(ConfigError, match="repa_dim=112"):
        build_task(tiny_config(tmp_path, loss=loss))
    result = train(tiny_config(tmp_path, loss=loss, model={**TINY, "repa_dim": 112, "repa_hidden": 16}, steps=2))
    assert -1.0 <= result.metrics["train/alignment"] <= 1.0
    assert result.metrics["train/total"] == pytest.approx(
        result.metrics["train/flow"] + result.metrics["train/alignment"], abs=1e-5
    )


def test_an_unknown_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timm has no model 'nobody'"):
        build_task(tiny_config(tmp_path, loss={"pretrained": False, "alignment": "nobody"}))


@pytest.mark.parametrize("file", ["flextok/tiny.yaml", "onedpiece/tiny.yaml"])
def test_held_out_photographs_gain_from_every_doubling_of_tokens(file: str, tmp_path: Path) -> None:
    config = load_config(
        TrainConfig,
        embedded_config(file),
        [f"output_dir={tmp_path}", "steps=8", "batch_size=4", "schedule.warmup_steps=2", "preview_every=0"],
    )
    task = build_task(config)
    folder = train(config).folder
    model, data = from_pretrained(folder / "final"), task.dataset(train=False)
    images = torch.stack([data[index]["image"] for index in range(0, len(data), 2)])
    tokens = model.encode(images)
    scores = [float(psnr(model.decode(tokens.truncate(k)), images).mean()) for k in (1, 2, 4, 8, 16, 32, 64)]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 3.0


def test_a_dry_run_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=4_000_000_000))
    config = load_config(TrainConfig, embedded_config("flextok/flextok_d12_d12_in1k.yaml"))
    with pytest.raises(ConfigError, match=r"more than \d+ GB .* and 4 GB are free"):
        train(config, dry_run=True)
