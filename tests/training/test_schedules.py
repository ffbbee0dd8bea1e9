"""Learning rates, annealing and the EMA's decay, against the recorded ones and as torch sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vistok.training.config import ScheduleConfig
from vistok.training.ema import Ema, best_modules, ema_decay
from vistok.training.schedules import build_scheduler, learning_rate, linear_anneal

CASE = Path(__file__).parents[1] / "golden" / "titok" / "schedules"
TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-9, "check_dtype": False}


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((CASE / "case.json").read_text())["config"], load_file(CASE / "io.safetensors")


@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_learning_rate_is_the_recorded_one(recorded: Any, kind: str) -> None:
    config, tensors = recorded
    rates = [
        learning_rate(step, kind, config["learning_rate"], config["end_lr"], config["warmup"], config["total"])
        for step in tensors["in/steps"].tolist()
    ]
    torch.testing.assert_close(torch.tensor(rates), tensors[f"out/lr_{kind}"], **TIGHT)


def test_decay_and_random_ratio_are_the_recorded_ones(recorded: Any) -> None:
    config, tensors = recorded
    steps = tensors["in/steps"].tolist()
    decays = torch.tensor([ema_decay(step, config["ema_decay"]) for step in steps])
    torch.testing.assert_close(decays, tensors["out/ema_decay"], **TIGHT)
    ratios = torch.tensor([linear_anneal(step, *config["anneal"]) for step in steps])
    torch.testing.assert_close(ratios, tensors["out/random_ratio"], **TIGHT)
    assert linear_anneal(625, 500, 750) == 0.5


def test_the_average_follows_the_recorded_trace(recorded: Any) -> None:
    config, tensors = recorded
    module = nn.Module()
    module.w = nn.Parameter(tensors["out/w0"].clone())
    ema = Ema(module, decay=config["ema_decay"])
    for update, expected in enumerate(tensors["out/ema_trace"], start=1):
        module.w.data += 1.0
        ema.update(module, step=update)
        torch.testing.assert_close(ema.module.w.data, expected, **TIGHT)
    assert not ema.module.w.requires_grad


def test_the_average_copies_buffers() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
    ema = Ema(module)
    for update in (1, 2):
        module(torch.randn(4, 2))
        ema.update(module, step=update)
    assert all(torch.equal(*pair) for pair in zip(ema.module.buffers(), module.buffers(), strict=True))


@pytest.mark.parametrize("done", [0, 1, 7])
def test_the_scheduler_gives_the_same_rates_wherever_it_begins(done: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=9.0)
    config = ScheduleConfig(warmup_steps=3, end_lr=0.01)
    scheduler = build_scheduler(optimizer, config, lr=0.2, total_steps=10, done=done)
    for step in range(done, 13):
        assert scheduler.last_epoch == step
        expected = learning_rate(step, "cosine", 0.2, 0.01, 3, 10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_evaluation_mode_is_lent_not_kept() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()  # a frozen part of a model in training
    averaged = Ema(nn.Linear(1, 1))
    with best_modules({"model": model, "other": nn.Linear(1, 1)}, {"other": averaged}) as modules:
        assert modules["model"] is model and not any(part.training for part in model.modules())
        assert modules["other"] is averaged.module
    assert [part.training for part in model.modules()] == [True, True, False]
