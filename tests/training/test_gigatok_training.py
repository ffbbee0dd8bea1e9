"""Training GigaTok through the common loop: the way past the tokens, the adversaries, exact resumption, the tiny recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vistok.config import embedded_config, from_dict, load_config
from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.training import TrainConfig, build_task
from vistok.training.loop import train

TINY: dict[str, Any] = {
    "family": "gigatok",
    "image_size": 32,
    "base_channels": 32,
    "multipliers": [1, 1, 1],
    "decoder_multipliers": [1, 1, 1],
    "num_blocks": 1,
    "map_channels": 16,
    "encoder": {"width": 32, "depth": 1, "num_heads": 2},
    "decoder": {"width": 32, "depth": 2, "num_heads": 2},
    "num_tokens": 16,
    "codebook_size": 64,
    "entropy_weight": 0.01,
    "repa_dim": 112,
    "repa_depth": 1,
    "usage_window": 0,
}
LOSS: dict[str, Any] = {
    "pretrained": False,
    "alignment": "lite0",
    "alignment_weight": 0.5,
    "adversarial_weight": 0.5,
    "adversarial_start": 2,
    "discriminator": "patchgan",
    "discriminator_weight": 0.5,
    "auxiliary_end": 3,
}


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        "name": "tiny",
        "model": TINY,
        "data": {"train": "random:8"},
        "loss": LOSS,
        "steps": 4,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "preview_every": 0,
        "output_dir": str(folder),
    }
    return from_dict(TrainConfig, {**values, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.rglob("*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_terms_come_and_go_with_the_steps(tmp_path: Path) -> None:
    result = train(tiny_config(tmp_path))
    rows = {row["step"]: row for row in lines(result.folder) if "train/total" in row}
    for step, row in rows.items():
        assert ("train/direct_reconstruction" in row) == ("train/map" in row) == (step <= 2)
        assert ("train/adversarial" in row) == ("train/discriminator" in row) == (step >= 3)
        assert {"train/alignment", "train/entropy", "train/codebook"} <= row.keys()
    assert sorted(rows) == [1, 2, 3, 4]
    model = from_pretrained(result.folder / "final")
    assert model.family == "gigatok"


@pytest.mark.parametrize("kind", ["patchgan", "features"])
def test_resuming_equals_the_straight_run(kind: str, tmp_path: Path) -> None:
    loss = LOSS | {"discriminator": kind, "discriminator_network": "lite0", "diff_augment": kind == "features"}
    states = []
    for folder, parts in (("straight", (4,)), ("broken", (3, 4))):
        for steps in parts:
            config = tiny_config(tmp_path / folder, steps=steps, loss=loss, schedule={"kind": "constant"})
            result = train(config)
        states.append(from_pretrained(result.folder / "final").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set model\.repa_dim=112"):
        build_task(tiny_config(tmp_path, model=TINY | {"repa_dim": 7}))
    titok = {"name": "titok_tiny_32.emoji", "init": "random"}
    with pytest.raises(ConfigError, match="TiTok has no way past its tokens"):
        build_task(tiny_config(tmp_path, model=titok, loss={"auxiliary_end": 5}))


def test_unused_heads_are_known_to_distributed_training(tmp_path: Path) -> None:
    assert build_task(tiny_config(tmp_path, loss={"pretrained": False})).find_unused_parameters
    assert not build_task(tiny_config(tmp_path)).find_unused_parameters


def test_the_tiny_recipe_starts(tmp_path: Path) -> None:
    overrides = ["steps=2", "batch_size=2", "data.train=random:8", "loss.pretrained=false", "preview_every=2"]
    config = load_config(TrainConfig, embedded_config("gigatok/tiny.yaml"), [*overrides, f"output_dir={tmp_path}"])
    assert train(config).step == 2
