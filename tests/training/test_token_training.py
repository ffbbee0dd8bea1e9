"""Generators trained on token shards: as on pictures, resumed exactly, of random prefixes, by the commands."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make

from vistok.cli import main
from vistok.config import from_dict, load_yaml, merge
from vistok.data import open_source
from vistok.data.shard_writer import write_token_shards
from vistok.data.token_shards import TokenShards
from vistok.errors import ConfigError, DataError
from vistok.hub import from_pretrained
from vistok.training import TrainConfig, build_task, train
from vistok.training.checkpoint import newest_checkpoint
from vistok.training.loop import TrainingRun

DIGIT_AR = {"family": "digit_ar", "width": 32, "depth": 1, "num_heads": 2, "class_dropout": 0.2}

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [path for path in sorted(CONFIGS.glob("*/tiny*.yaml")) if load_yaml(path)["task"] == "generator"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers, and shards of their tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    for kind in ("fsq_ordered", "vq_pixels", "gaussian"):
        tokenizer = make(kind)
        tokenizer.save_pretrained(folder / kind)
        for split in ("train", "val"):
            source = open_source("random:40", split=split)
            options = {"views": "random:2" if split == "train" else "center", "shard_size": 8, "progress": False}
            write_token_shards(tokenizer, source, folder / f"{kind}_{split}", split=split, **options)
    return folder


def run_config(folder: Path, out: Path, kind: str = "fsq_ordered", **changes: Any) -> TrainConfig:
    spec = {
        "name": "tiny",
        "task": "generator",
        "steps": 6,
        "batch_size": 4,
        "data": {"train": f"tokens:{folder}/{kind}_train", "val": f"tokens:{folder}/{kind}_val"},
        "model": DIGIT_AR,
        "schedule": {"kind": "constant", "warmup_steps": 2},
        "checkpoint_every": 2,
        "log_every": 1,
        "preview_every": 0,
        "output_dir": str(out),
    }
    return from_dict(TrainConfig, spec | changes)


def final_state(out: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(out / "tiny" / "checkpoints")
    assert newest is not None
    return load_file(newest / "tensors.safetensors")


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def test_shards_train_as_pictures_do(folder: Path, tmp_path: Path) -> None:
    train(run_config(folder, tmp_path / "shards", eval_every=3))
    pictures = {"train": "random:40", "crop": "random", "flip": 0.5}
    loss = {"tokenizer": str(folder / "fsq_ordered"), "views": 2}
    train(run_config(folder, tmp_path / "pictures", data=pictures, loss=loss, eval_every=3))
    assert_equal(final_state(tmp_path / "shards"), final_state(tmp_path / "pictures"))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "tiny" / "metrics.jsonl").read_text().splitlines()]
        for name in ("shards", "pictures")
    ]
    evaluations = [[line["eval/nll_per_token"] for line in part if "eval/nll_per_token" in line] for part in lines]
    assert len(evaluations[0]) == 2 and evaluations[0] == evaluations[1]
    generator = from_pretrained(tmp_path / "shards" / "tiny" / "final")
    tokenizer = from_pretrained(folder / "fsq_ordered")
    assert generator.config.tokenizer_hash == tokenizer.weight_hash() and generator.num_classes == 10


def test_evaluation_says_what_frequencies_alone_reach(folder: Path, tmp_path: Path) -> None:
    task = build_task(run_config(folder, tmp_path))
    counts = [0.5] * task.codebook_size
    for index in range(len(task.bank)):
        for value in task.bank[index]["ids"].tolist():
            counts[value] += 1
    held_out = task.dataset(train=False)
    ids = [value for index in range(len(held_out)) for value in held_out[index]["ids"].tolist()]
    wanted = -sum(math.log(counts[value] / sum(counts)) for value in ids) / len(ids)
    result = task.evaluate(task.modules)
    assert result["unigram_nll"] == pytest.approx(wanted, rel=1e-5) and result["nll_per_token"] > 0


@pytest.mark.parametrize("nested", ["none", "uniform"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_exactly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: str, workers: int
) -> None:
    data = {"train": f"tokens:{folder}/fsq_ordered_train", "num_workers": workers}
    changes = {"loss": {"nested": nested}, "data": data, "gradient_accumulation": 2}
    train(run_config(folder, tmp_path / "straight", **changes))
    step = TrainingRun.optimizer_step

    class KilledError(Exception):
        pass

    def dying(self: TrainingRun, micros: list[dict[str, Any]]) -> dict[str, float]:
        if self.step == 3:
            raise KilledError
        return step(self, micros)

    monkeypatch.setattr(TrainingRun, "optimizer_step", dying)
    with pytest.raises(KilledError):
        train(run_config(folder, tmp_path / "killed", **changes))
    monkeypatch.undo()
    assert train(run_config(folder, tmp_path / "killed", **changes)).step == 6
    assert_equal(final_state(tmp_path / "straight"), final_state(tmp_path / "killed"))


@pytest.mark.parametrize(("nested", "lengths"), [("uniform", {1, 2, 3, 4, 5, 6}), ("pow2", {1, 2, 4, 6})])
def test_nested_lengths_are_functions_of_the_samples(
    folder: Path, tmp_path: Path, nested: str, lengths: set[int]
) -> None:
    task = build_task(run_config(folder, tmp_path, loss={"nested": nested}))
    data = task.dataset(train=True)
    items = [data[index % len(data), index * 977] for index in range(300)]
    drawn = task.collate(items)["length"]
    assert torch.equal(drawn, torch.cat([task.collate([item])["length"] for item in items]))
    counts = Counter(drawn.tolist())
    assert counts.keys() == lengths and min(counts.values()) > 0.5 * 300 / len(lengths)
    batch = task.collate(items[:8])
    out, _ = task.model.train(), task.wrapped.update(model=task.model)
    loss, _ = task.loss("model", batch, 0, torch.Generator())
    whole, _ = task.loss("model", batch | {"length": torch.full((8,), 6)}, 0, torch.Generator())
    assert loss.isfinite() and loss != whole and out is task.model
    assert build_task(run_config(folder, tmp_path)).collate(items)["length"].eq(6).all()


def test_a_shorter_generator_reads_the_first_tokens(folder: Path, tmp_path: Path) -> None:
    model = DIGIT_AR | {"num_tokens": 3}
    task = build_task(run_config(folder, tmp_path, model=model, loss={"nested": "pow2"}))
    batch = task.collate([task.dataset(train=True)[index, index] for index in range(20)])
    assert batch["ids"].shape == (20, 3) and set(batch["length"].tolist()) == {1, 2, 3}
    assert task.dataset(train=False)[0]["ids"].shape == (3,)


def test_latents_train_a_generator(folder: Path, tmp_path: Path) -> None:
    shards = TokenShards(folder / "gaussian_train")
    assert shards.continuous and shards[3, 1]["latents"].dtype == torch.float32
    with pytest.raises(ConfigError, match="makes continuous latents, and this digit_ar wants ids"):
        build_task(run_config(folder, tmp_path, "gaussian", model=DIGIT_AR | {"codebook_size": 8}))


@pytest.mark.parametrize("path", TINY, ids=lambda path: "-".join(path.parts[-2:]))
def test_the_shipped_recipes_of_generators_train(path: Path, folder: Path, tmp_path: Path) -> None:
    kind = "gaussian" if path.stem == "tiny_kl" else "fsq_ordered"
    given = {"data": {"train": f"tokens:{folder}/{kind}_train", "val": ""}, "loss": {"tokenizer": ""}}
    spec = merge(load_yaml(path), given | {"output_dir": str(tmp_path), "steps": 2, "batch_size": 4})
    result = train(from_dict(TrainConfig, spec))
    assert result.step == 2 and all(map(math.isfinite, result.metrics.values()))
    model = from_pretrained(result.folder / "final")
    assert len(model.generate(None, 2, seeds=0).tokens) == 2


def test_folders_of_imagenet_become_words(folder: Path, tmp_path: Path) -> None:
    source = open_source("random:6")
    for number, name in enumerate(("n01440764", "n02099601", "mine")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in (2 * number, 2 * number + 1):
            source.image(index).save(tmp_path / "pictures" / name / f"{index}.png")
    loss = {"tokenizer": str(folder / "fsq_ordered"), "views": 1}
    result = train(run_config(folder, tmp_path, steps=1, data={"train": f"folder:{tmp_path}/pictures"}, loss=loss))
    model = from_pretrained(result.folder / "final")
    assert sorted(model.config.class_names) == ["golden retriever", "mine", "tench"]
    assert len(model.generate(["tench", "mine"], seeds=0).tokens) == 2


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    other = {"train": f"tokens:{folder}/fsq_ordered_train", "val": f"tokens:{folder}/vq_pixels_val"}
    with pytest.raises(ConfigError, match="and not of titok"):
        build_task(run_config(folder, tmp_path, loss={"tokenizer": str(folder / "vq_pixels")}))
    with pytest.raises(ConfigError, match="and not of titok"):
        build_task(run_config(folder, tmp_path, data=other, eval_every=2))
    write_token_shards(make("fsq_ordered"), open_source("emoji:Flags"), tmp_path / "flags", limit=5, progress=False)
    with pytest.raises(ConfigError, match="other classes"):
        build_task(run_config(folder, tmp_path, data=other | {"val": f"tokens:{tmp_path / 'flags'}"}, eval_every=2))
    with pytest.raises(ConfigError, match="holds nothing out"):
        build_task(run_config(folder, tmp_path, data={"train": other["train"]}, eval_every=2))
    with pytest.raises(ConfigError, match=r"by loss\.tokenizer"):
        build_task(run_config(folder, tmp_path, data={"train": "random:4"}))
    with pytest.raises(ConfigError, match=r"leave loss\.nested=uniform away"):
        build_task(run_config(folder, tmp_path, "vq_pixels", loss={"nested": "uniform"}))
    with pytest.raises(ConfigError, match="nested"):
        build_task(run_config(folder, tmp_path, loss={"nested": "some"}))
    with pytest.raises(DataError, match="does not exist"):
        build_task(run_config(folder, tmp_path, data={"train": "tokens:nowhere"}))
    with pytest.raises(DataError, match="pictures are wanted"):
        open_source(other["train"])


def test_a_dry_run_reads_the_shards(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert train(run_config(folder, tmp_path, eval_every=1), dry_run=True).step == 2
    assert "does not try" not in caplog.text and not list(tmp_path.iterdir())


def test_from_pictures_to_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The commands: tokenize, train on the shards, generate."""
    tokenizer, shards = str(folder / "fsq_ordered"), str(tmp_path / "shards")
    command = ["tokenize", "--model", tokenizer, "--data", "emoji:Flags", "--views", "ten_crop", "--out", shards]
    assert main([*command, "--limit", "20", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 200
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: run\ntask: generator\nsteps: 20\nbatch_size: 8\ndata: {{train: 'tokens:{shards}'}}\noutput_dir: {tmp_path}\n"
        f"model: {{family: digit_ar, width: 32, depth: 1, num_heads: 2}}\nloss: {{tokenizer: {tokenizer}, nested: pow2}}\n"
        "preview_every: 20\n"
    )
    assert main(["train", str(recipe)]) == 0
    assert list((tmp_path / "run" / "previews").iterdir())
    generate = ["generate", "--model", str(tmp_path / "run" / "final"), "--tokenizer", tokenizer, "--device", "cpu"]
    assert main([*generate, "--num", "4", "--length", "4", "--out", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples" / "images").iterdir())) == 4
