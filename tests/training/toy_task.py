"""A small task for the loop's tests: a linear autoencoder, a discriminator, and their own data.

As a script it runs a configuration from JSON, and signals itself where it is told to:
``python toy_task.py CONFIG.json [--kill-at STEP | --stop-at STEP]``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from vistok.config import from_dict
from vistok.training import TrainConfig
from vistok.training.task import Task

_WIDTH, _CODES = 12, 5


class ToyData(Dataset):
    """Vectors of [0, 1]: an item is a function of (index, sample seed)."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        clean = torch.rand(_WIDTH, generator=torch.Generator().manual_seed(index))
        noise = torch.rand(_WIDTH, generator=torch.Generator().manual_seed(seed))
        return {"image": 0.9 * clean + 0.1 * noise, "index": index, "name": f"toy {index}"}


class Autoencoder(nn.Module):
    """Vectors to themselves, through a bottleneck with a buffer that masks and one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(_WIDTH, _CODES), nn.Linear(_CODES, _WIDTH)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, noise: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        if self.training:
            self.seen += 1
        return self.decoder(z + noise), z.argmax(dim=-1)


class ToyTask(Task):
    """``config.loss``: ``noise`` (drawn noise's size), ``start`` (of the adversary), ``poison`` (step with a nan)."""

    codebook_size = _CODES

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.options = {"noise": 0.0, "start": 0, **config.loss}
        self.modules["model"] = Autoencoder().eval()  # as loaded models come
        self.modules["discriminator"] = nn.Sequential(nn.Linear(_WIDTH, 8), nn.Tanh(), nn.Linear(8, 1))
        self.extra["average"] = nn.BatchNorm1d(1, affine=False)
        self.frozen["target"] = nn.Dropout(0.5)
        self.prepared, self.seen, self.ids = 0, [], None

    def schedule_steps(self, name: str) -> int:
        return self.config.steps - (self.options["start"] if name == "discriminator" else 0)

    def prepare(self, *, device: torch.device) -> None:
        self.prepared += 1

    def dataset(self, *, train: bool) -> Dataset:
        return ToyData()

    def collate(self, items: list[Any]) -> dict[str, Any]:
        return default_collate(items)

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model", "discriminator") if step >= self.options["start"] else ("model",)

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.modules["model"].training and not self.frozen["target"].training
        x = batch["image"]
        self.seen.append((phase, step, batch["index"].tolist()))
        if phase == "discriminator":
            real, fake = self.wrapped["discriminator"](torch.cat([x, batch["fake"]])).chunk(2)
            self.extra["average"](real.detach())
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), {"logits_real": real.mean()}
        size = self.options["noise"]
        # Both kinds of draw: torch's own generator, and the one the loop gives.
        noise = size * (torch.randn(_CODES) + torch.randn(_CODES, generator=generator)).to(x.device)
        fake, self.ids = self.wrapped["model"](x, noise)
        batch["fake"] = fake.detach().float()
        terms = {"reconstruction": F.mse_loss(self.frozen["target"](fake.float()), x)}
        if self.options.get("poison") == step:
            terms["reconstruction"] = terms["reconstruction"] * float("nan")
        if "discriminator" in self.phases(step):
            terms["adversarial"] = -0.1 * self.modules["discriminator"](fake.float()).mean()
        return torch.stack(list(terms.values())).sum(), terms

    def codebook_ids(self) -> Tensor | None:
        return self.ids

    def preview(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor | None:
        rows = torch.cat([batch["image"], modules["model"](batch["image"])[0]])
        return rows.detach().expand(3, -1, -1)

    @torch.no_grad()
    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        assert not any(part.training for part in modules["model"].modules())
        items = self.collate([ToyData()[index, 0] for index in range(4)])
        return {"mse": float(F.mse_loss(modules["model"](items["image"])[0], items["image"]))}

    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        folder.mkdir(parents=True)
        save_file(modules["model"].state_dict(), folder / "model.safetensors")


def toy_config(folder: Path, **changes: Any) -> TrainConfig:
    """A quick run of the toy task with its output in ``folder``; dotted keys change nested values as a mapping does."""
    values: dict[str, Any] = {
        "name": "toy",
        "model": {"family": "toy"},
        "data": {"train": "random:16"},
        "loss": {"noise": 0.1},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_steps": 2},
        "ema": {"decay": 0.9},
        "steps": 6,
        "batch_size": 8,
        "output_dir": str(folder),
        "checkpoint_every": 0,
        "log_every": 2,
        "preview_every": 0,
    }
    return from_dict(TrainConfig, {**values, **changes})


class SignalledTask(ToyTask):
    """In the middle of a step the last process sends itself SIGKILL or SIGTERM, once."""

    kill_at = stop_at = -1

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase == "discriminator" and step in (self.kill_at, self.stop_at) and is_last_process():
            os.kill(os.getpid(), signal.SIGKILL if step == self.kill_at else signal.SIGTERM)
            type(self).stop_at = -1
        return super().loss(phase, batch, step, generator)


def is_last_process() -> bool:
    """Whether torchrun started this process last, or alone."""
    return int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1


def main() -> None:
    """Run a configuration, again if it was stopped."""
    from vistok.training.loop import TrainingRun

    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--stop-at", type=int, default=-1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    SignalledTask.kill_at, SignalledTask.stop_at = args.kill_at, args.stop_at
    config = from_dict(TrainConfig, json.loads(args.config.read_text()))
    finished = False
    while not finished:
        torch.manual_seed(config.seed)
        run = TrainingRun(config, SignalledTask(config))
        print(f"{run.accelerator.num_processes} processes start after step {run.step}")
        finished = run.train().finished


if __name__ == "__main__":
    main()
