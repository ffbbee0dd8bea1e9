"""Training KARL and ALIT: stages, turns of the adversary, and exact resumption."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_alit import KINDS as ALIT
from models.test_karl import KINDS as KARL

from vistok.config import to_dict
from vistok.data.config import DataConfig
from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.training import TrainConfig, build_task, train
from vistok.training.adaptive_task import AdaptiveTask
from vistok.training.config import EmaConfig, OptimizerConfig


def config(tmp_path: Path, family: str, kind: str, **changes: Any) -> TrainConfig:
    model = {"family": family, **to_dict({"karl": KARL, "alit": ALIT}[family][kind])}
    return replace(
        TrainConfig(
            name=f"{family}_{kind}",
            steps=4,
            batch_size=4,
            data=DataConfig(train="random:16", crop="center"),
            model=model,
            loss={"reconstruction": "l1", "pretrained": False},
            optimizer=OptimizerConfig(lr=1e-3),
            ema=EmaConfig(decay=0.9),
            output_dir=str(tmp_path),
            checkpoint_every=2,
            log_every=1,
            preview_every=0,
        ),
        **changes,
    )


ADVERSARY = {"adversarial_weight": 0.2, "adversarial_start": 1, "adversarial_period": 2, "num_discriminators": 2}


@pytest.mark.parametrize(
    ("family", "kind", "loss"),
    [
        ("karl", "linear", {}),
        ("karl", "vqgan_vq", {"stage": "latents"}),
        ("karl", "kl_vq", {"stage": "latents"}),
        ("karl", "kl_vq", ADVERSARY),
        ("alit", "vqgan_vq", {"stage": "latents", "run_weights": [2.0, 1.5]}),
        ("alit", "vqgan_vq", ADVERSARY),
    ],
)
def test_a_resumed_run_equals_a_straight_one(family: str, kind: str, loss: dict[str, Any], tmp_path: Path) -> None:
    loss = {"reconstruction": "l1", "pretrained": False, **loss}
    straight = config(tmp_path / "straight", family, kind, loss=loss)
    result = train(straight)
    assert result.finished and torch.tensor(list(result.metrics.values())).isfinite().all()
    # The learning rate depends on the number of steps, so the run is cut by its checkpoints.
    cut = replace(straight, output_dir=str(tmp_path / "cut"))
    train(cut)
    last = max((tmp_path / "cut" / straight.name / "checkpoints").iterdir())
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    train(cut)
    models = [from_pretrained(tmp_path / run / straight.name / "final") for run in ("straight", "cut")]
    for first, second in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(first, second)


def test_errors_to_ask_for_are_kept_in_checkpoints(tmp_path: Path) -> None:
    task = build_task(config(tmp_path, "karl", "pixels_fsq"))
    assert isinstance(task, AdaptiveTask)
    assert "probabilities" in task.extra["errors"].state_dict() and not any(
        "errors" in k for k in task.model.state_dict()
    )


def test_the_base_is_frozen_on_latents_only(tmp_path: Path) -> None:
    task = build_task(config(tmp_path, "karl", "vqgan_vq", loss={"stage": "latents", "pretrained": False}))
    assert not any(p.requires_grad for p in task.model.base.parameters())
    task = build_task(config(tmp_path, "karl", "vqgan_vq"))
    assert all(p.requires_grad for p in task.model.base.parameters())
    with pytest.raises(ConfigError, match="pixels"):
        build_task(config(tmp_path, "karl", "pixels_fsq", loss={"stage": "latents", "pretrained": False}))


def test_turns_and_their_schedules(tmp_path: Path) -> None:
    loss = {"pretrained": False, **ADVERSARY, "adversarial_start": 3, "adversarial_period": 3}
    task = build_task(config(tmp_path, "alit", "kl_vq", loss=loss, steps=12))
    phases = [task.phases(step) for step in range(12)]
    assert [index for index, phase in enumerate(phases) if phase == ("model",)] == [0, 1, 2, 3, 6, 9]
    assert task.schedule_steps("model") == 6 and task.schedule_steps("discriminator") == 6


def test_a_frozen_base_starts_from_its_weights(tmp_path: Path) -> None:
    from vistok.models.maskgit_vqgan import MaskGitVqgan

    base = MaskGitVqgan(KARL["vqgan_vq"].vqgan)
    base.save_pretrained(tmp_path / "base")
    loss = {"stage": "latents", "base": str(tmp_path / "base")}
    task = build_task(config(tmp_path, "karl", "vqgan_vq", loss=loss))
    assert task.model.base.codec.weight_hash() == base.weight_hash()
    with pytest.raises(ConfigError, match="is not the model's"):
        build_task(config(tmp_path, "karl", "kl_vq", loss=loss))


@pytest.mark.slow
def test_more_tokens_when_the_error_must_be_smaller(tmp_path: Path) -> None:
    """The tiny recipe, shortened: the number of tokens rises when the wanted error falls, and the error follows."""
    from vistok.config import load_config
    from vistok.data import ImageDataset, open_source

    path = Path(__file__).parents[2] / "configs" / "karl" / "tiny.yaml"
    shorter = ["steps=80", "batch_size=16", "eval_every=0", "preview_every=0"]
    result = train(load_config(TrainConfig, path, [f"output_dir={tmp_path}", *shorter]))
    model = from_pretrained(result.folder / "final")
    data = ImageDataset(open_source("emoji:Smileys & Emotion", split="val"), image_size=64)
    images = torch.stack([data[index]["image"] for index in range(min(32, len(data)))])
    errors, lengths = [], []
    for target in (0.01, 0.03, 0.06, 0.1):
        tokens = model.encode(images, target_error=target)
        lengths.append(float(tokens.lengths.double().mean()))
        errors.append(float((model.decode(tokens) - images).abs().mean()))
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1] + 4
    # Once all tokens are kept the error has reached its floor, where it moves by hundredths of a percent.
    assert all(after > before - 1e-3 for before, after in pairwise(errors)) and errors[-1] > errors[0]
