"""Searches for many conditions: resuming, processes, refusals; ``vistok search``; trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vistok.cli import main
from vistok.errors import VistokError
from vistok.generate.sample_set import SamplePlan, condition_record
from vistok.generate.text import TextCondition
from vistok.hub import create_model
from vistok.report.trajectory import search_trajectory
from vistok.search import BeamConfig, BestOfNConfig, SearchMethod, search
from vistok.search.search_set import SearchCell, SearchModels, image_path, read_results, run_searches
from vistok.search.verifiers import VERIFIERS, Ensemble, FunctionVerifier, SimilarityVerifier
from vistok.search.verifiers.scene import SceneVerifier

BEAM = BeamConfig(beam_width=2, token_schedule=(1, 4, 32))
PLAN = SamplePlan(num=5, conditions=(0, 3), seed=7, labels=(0, 3))
CELLS = [
    SearchCell("tiny", method, budget) for method, budget in ((BestOfNConfig(), 3), (BestOfNConfig(), 6), (BEAM, 9))
]


def redness(images: Tensor, condition: list[Any]) -> Tensor:
    return images[:, 0].mean(dim=(1, 2))


def greenness(images: Tensor, condition: list[Any]) -> Tensor:
    return images[:, 1].mean(dim=(1, 2))


class OneOfTwo:
    """What a process of two sees of its accelerator; the other is not waited for."""

    num_processes = 2

    def __init__(self, index: int) -> None:
        self.process_index, self.is_main_process = index, False

    def wait_for_everyone(self) -> None:
        """The test runs them one after the other."""


def test_a_run_that_was_killed_goes_on(generator, tokenizer, tmp_path, monkeypatch):
    models = {"tiny": SearchModels(generator, tokenizer, FunctionVerifier(redness), judge=FunctionVerifier(greenness))}
    whole = run_searches(models, CELLS, PLAN, tmp_path / "whole", chunk_size=2, progress=False)
    calls = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(*args, **kwargs)

    monkeypatch.setattr("vistok.search.search_set.search", dying)
    with pytest.raises(KeyboardInterrupt):
        run_searches(models, CELLS, PLAN, tmp_path / "killed", chunk_size=2, progress=False)
    again = run_searches(models, CELLS, PLAN, tmp_path / "killed", chunk_size=2, progress=False)
    assert len(calls) == 1 + len(CELLS) * 3  # nothing that was whole is done again
    for cell, ours, theirs in zip(CELLS, again["cells"], whole["cells"], strict=True):
        for result in (ours, theirs):
            result["cost"].pop("seconds")
        assert ours == theirs
        first, second = (read_results(tmp_path / run, cell, 5, 2) for run in ("whole", "killed"))
        assert first == second and [entry["condition"] for entry in first] == [0, 3, 0, 3, 0]
        for index in range(5):
            pictures = [
                np.asarray(Image.open(image_path(tmp_path / run, cell.name, index))) for run in ("whole", "killed")
            ]
            assert np.array_equal(*pictures)


def test_processes_share_the_pieces(generator, tokenizer, tmp_path):
    models = {"tiny": SearchModels(generator, tokenizer, FunctionVerifier(redness))}
    run_searches(models, CELLS, PLAN, tmp_path / "one", chunk_size=2, progress=False)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "settings.json").write_bytes((tmp_path / "one" / "settings.json").read_bytes())
    done = []
    for index in range(2):
        accelerator: Any = OneOfTwo(index)
        try:
            run_searches(models, CELLS, PLAN, tmp_path / "two", chunk_size=2, accelerator=accelerator, progress=False)
        except FileNotFoundError:
            assert index == 0  # the other process's pieces are not there yet
        done.append(len(list((tmp_path / "two" / "pieces").rglob("*.json"))))
    assert done == [5, 9]
    for cell in CELLS:
        assert read_results(tmp_path / "one", cell, 5, 2) == read_results(tmp_path / "two", cell, 5, 2)


def test_costs_and_scores_are_means(generator, tokenizer, tmp_path):
    models = {"tiny": SearchModels(generator, tokenizer, FunctionVerifier(redness))}
    result = run_searches(models, CELLS, PLAN, tmp_path, chunk_size=5, progress=False)
    few, many, beam = result["cells"]
    assert few["cost"]["verifier_calls"] == few["cost"]["decoder_passes"] == 3 and many["score"] >= few["score"]
    assert many["cost"]["token_forwards"] == (1 * 5 + 5 * 6 * 31) / 5
    alone = search(
        generator,
        tokenizer,
        [PLAN.condition(index) for index in range(5)],
        method=BEAM,
        budget=9,
        verifier=redness,
        seeds=[PLAN.seed_of(index) for index in range(5)],
    )
    assert beam["score"] == pytest.approx(float(alone.scores.mean())) and beam["images"] == 5


def test_another_set_in_the_same_folder_is_refused(generator, tokenizer, tmp_path):
    models = {"tiny": SearchModels(generator, tokenizer, FunctionVerifier(redness))}
    run_searches(models, CELLS[:1], PLAN, tmp_path, progress=False)
    with pytest.raises(VistokError, match="holds other searches"):
        run_searches(models, CELLS[:2], PLAN, tmp_path, progress=False)
    with pytest.raises(VistokError, match="differ in model, method or budget"):
        run_searches(models, [CELLS[0]] * 2, PLAN, tmp_path / "new", progress=False)


def test_another_reference_is_another_search(generator, tokenizer, tmp_path):
    def run(reference: Tensor, close: float = 0.2, conditions: tuple[Any, ...] = (0,)) -> None:
        verifier = Ensemble([SimilarityVerifier(lambda x, y: -(x - y).abs().mean(dim=(1, 2, 3)), reference)])
        models = {"tiny": SearchModels(generator, tokenizer, verifier, judge=SceneVerifier(close=close))}
        plan = SamplePlan(num=1, conditions=conditions, seed=7)
        run_searches(models, CELLS[:1], plan, tmp_path, progress=False)

    image = torch.rand(3, 64, 64)
    with pytest.raises(VistokError, match="scene"):  # a class is no scene: only the settings are written
        run(image)
    for changed in (image.flip(1), {0: image}):
        with pytest.raises(VistokError, match="holds other searches"):
            run(changed)
    with pytest.raises(VistokError, match="holds other searches"):
        run(image, close=0.3)


def test_conditions_are_recorded_by_what_they_hold():
    images = torch.rand(2, 3, 64, 64)
    assert condition_record(images[0]) != condition_record(images[1]) and condition_record(3) == 3
    made = [TextCondition(torch.full((1, 2, 900), value), torch.ones(1, 2)) for value in (0.0, 0.5)]
    assert condition_record(made[0]) != condition_record(made[1]) and "TextCondition" in condition_record(made[0])


@pytest.fixture(scope="module")
def saved(generator, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    generator.save_pretrained(folder / "generator")
    tokenizer.save_pretrained(folder / "tokenizer")
    fixed = create_model("titok_tiny_32.emoji", tail_drop="none")
    fixed.load_state_dict(tokenizer.state_dict(), strict=False)
    fixed.save_pretrained(folder / "fixed")
    return folder


def test_the_command_draws_curves(saved, tmp_path, capsys):
    reference = tmp_path / "reference.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(reference)
    arguments = ["search", "--out", str(tmp_path / "out"), "--num", "2", "--classes", "1,2", "--device", "cpu"]
    for name in ("tokenizer", "fixed"):
        arguments += ["--model", f"{name}={saved / 'generator'}", "--tokenizer", str(saved / name)]
    arguments += ["--method", "best_of_n", "--method", "beam", "--budgets", "6,12", "--fill", "0"]
    arguments += ["--set", "token_schedule=[1,8,32]", "--set", "beam_width=2", "--set", "temperature=0.9"]
    assert main([*arguments, "--verifier", "likelihood"]) == 0
    assert main([*arguments, "--verifier", "likelihood"]) == 0  # nothing is left to do
    shown = capsys.readouterr().out
    assert "best_of_n" in shown and "beam" in shown
    result = json.loads((tmp_path / "out" / "search.json").read_text())
    assert [cell["model"] for cell in result["cells"]] == ["tokenizer"] * 4 + ["fixed"] * 4
    assert all((tmp_path / "out" / name).stat().st_size > 0 for name in ("search.png", "search.html", "winners.png"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "bean"], "did you mean beam"),
        (["--budgets", "0"], "1 or more"),
        (["--set", "lookahead_number=3"], "has no option 'lookahead_number'"),
        (["--tokenizer", "a", "--tokenizer", "b"], "one for each of 1 models"),
        (["--verifier", "similarity:lpips"], "give --reference"),
        (["--verifier", "likelihood", "--verifier", "likelihood", "--weights", "1,x"], "--weights are numbers"),
    ],
)
def test_the_command_explains_what_is_wrong(saved, tmp_path, capsys, more, message):
    arguments = ["search", "--model", str(saved / "generator"), "--out", str(tmp_path), "--device", "cpu"]
    if "--tokenizer" not in more:
        arguments += ["--tokenizer", str(saved / "tokenizer")]
    assert main([*arguments, *more]) != 0
    assert message in capsys.readouterr().err


def test_the_help_names_all_verifiers(capsys):
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in VERIFIERS)


def test_a_trajectory_shows_every_round(generator, tokenizer):
    options = {"verifier": redness, "seeds": [1, 2], "num_results": 2}
    result = search(generator, tokenizer, [0, 1], method=BEAM, budget=9, **options)
    picture = search_trajectory(tokenizer, result, names=["one", "two"], seeds=[1, 2])
    longer = search(generator, tokenizer, [0, 1], method="beam", complete_after_search=True, max_steps=3, **options)
    assert search_trajectory(tokenizer, longer).width > picture.width * 0.9
    assert isinstance(BEAM, SearchMethod)
