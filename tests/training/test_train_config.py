"""Training configurations: what is refused, and what makes another run of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_task import toy_config

from vistok.config import to_dict
from vistok.errors import ConfigError
from vistok.training.config import changed_keys, dry_run_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "gradient_accumulation": 4}, "does not divide into 4 micro batches"),
        ({"seed": 2**64}, "0 <= seed < 2\\^63"),
        ({"optimizer": {"lr": float("nan")}}, "`optimizer.lr` wants float, got nan"),
        ({"schedule": {"end_lr": float("inf")}}, "`schedule.end_lr` wants float, got inf"),
        ({"steps": 0}, "steps is at least 1"),
        ({"log_every": -1}, "log_every is a number of steps"),
        ({"name": "a/b"}, "without slashes"),
        ({"name": ".."}, "without slashes"),
        ({"model": {}}, "registered `name` or a `family`"),
        ({"optimizer": {"lr": 0.0}}, "optimizer: lr is above 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "betas are two numbers"),
        ({"optimizer": {"max_grad_norm": -1}}, "max_grad_norm is at least 0"),
        ({"schedule": {"warmup_steps": -1}}, "warmup_steps and end_lr are at least 0"),
        ({"ema": {"decay": 1.0}}, "0 <= decay < 1"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_config(tmp_path, **changes)


def test_changed_keys_knows_defaults_of_newer_keys(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    older = to_dict(config)
    del older["gradient_checkpointing"], older["freeze_encoder"]
    assert changed_keys(older, config) == []
    assert changed_keys(older | {"gone": 1, "seed": 3}, config)[-1] == "seed (3 -> 0)"


@pytest.mark.parametrize("task", ["tokenizer", "generator"])
def test_a_dry_run_is_small_and_offline(tmp_path: Path, task: str) -> None:
    config = toy_config(tmp_path, task=task, loss={"adversarial_weight": 0.1}, gradient_accumulation=4, init_from="x")
    small = dry_run_config(config, tmp_path, processes=2)
    assert (small.steps, small.batch_size, small.data.train, small.init_from) == (2, 16, "random:4", "")
    tokenizer = {"adversarial_weight": 0.1, "pretrained": False, "adversarial_start": 1}
    assert small.loss == (tokenizer if task == "tokenizer" else config.loss)
