"""Any number of processes gives what one gives: threads that play them, and two real ones through the script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch

import vistok
from vistok.errors import VistokError
from vistok.metrics import CodebookUsage, FeatureStats, evaluate_reconstruction
from vistok.metrics.processes import all_agree, main_first, sum_over_processes

ROOT = Path(__file__).resolve().parents[2]


class _Group:
    """Threads that stand for processes, and sum tensors together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[torch.Tensor | None] = [None] * size

    def run(self, work: Callable[[_Member], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return [done.result() for done in [pool.submit(work, _Member(self, rank)) for rank in range(self.size)]]


class _Member:
    """As much of an ``Accelerator`` as the metrics use."""

    def __init__(self, group: _Group, rank: int) -> None:
        self.group, self.process_index, self.num_processes = group, rank, group.size
        self.device, self.is_main_process = torch.device("cpu"), rank == 0
        self.main_process_first = nullcontext

    def reduce(self, x: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.group.slots[self.process_index] = x.clone()
        self.group.barrier.wait()
        total = torch.stack([part for part in self.group.slots if part is not None]).sum(dim=0)
        self.group.barrier.wait()
        return total


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_statistics_of_any_number_of_processes(size: int) -> None:
    """Also where some have seen nothing."""
    features = torch.randn(5, 4, dtype=torch.float64) * 3 + 100
    ids = torch.randint(0, 12, (5, 6))

    def work(member: _Member) -> tuple[FeatureStats, CodebookUsage]:
        stats, usage = FeatureStats(4), CodebookUsage((3, 4))
        stats.update(features[member.process_index :: size])
        usage.update(ids[member.process_index :: size])
        stats.all_reduce(member)
        usage.all_reduce(member)
        return stats, usage

    alone = CodebookUsage((3, 4))
    alone.update(ids)
    for stats, usage in _Group(size).run(work):
        assert stats.n == 5
        torch.testing.assert_close(stats.mean, features.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(stats.covariance, torch.cov(features.T), rtol=1e-11, atol=1e-12)
        assert (usage.tokens, usage.compute()) == (alone.tokens, alone.compute())
        assert usage.compute_factors() == alone.compute_factors()
        stats.update(features)  # goes on from what all have seen
        assert stats.n == 10


@pytest.mark.parametrize("size", [2, 3, 5])
def test_evaluation_of_any_number_of_processes(size: int) -> None:
    """To the last bit, where images are computed one by one: nothing depends on who measured them."""
    model = fresh_model()
    source = vistok.open_source("random:40", split="val")
    options = {"batch_size": 1, "features": "none", "lpips": False, "progress": False}
    alone = evaluate_reconstruction(model, source, **options)
    varying = ("processes", "seconds", "images_per_second", "date")

    def work(member: _Member) -> dict[str, Any]:
        return evaluate_reconstruction(model, source, accelerator=member, **options)

    for result in _Group(size).run(work):
        assert result["processes"] == size
        assert {key: value for key, value in result.items() if key not in varying} == {
            key: value for key, value in alone.items() if key not in varying
        }


def test_failure_of_one_process_ends_all() -> None:
    def make(member: _Member) -> int:
        if member.process_index == 1:
            raise OSError("disk full")
        return member.process_index

    def work(member: _Member) -> str:
        assert all_agree(3, member)
        assert not all_agree(member.process_index, member)
        try:
            main_first(lambda: make(member), member)
        except (VistokError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "fine"

    first, second = _Group(2).run(work)
    assert first == "VistokError: 1 of 2 processes failed; their messages say why"
    assert second == "OSError: disk full"


def fresh_model() -> Any:
    torch.manual_seed(1)
    model = vistok.create_model("titok_tiny_32.emoji")
    model.fit_linear(torch.rand(40, 3, model.image_size, model.image_size))
    for parameter in model.parameters():  # as it is made, it gives one and the same token
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_two_processes_give_the_same(tmp_path) -> None:
    model = fresh_model()
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "result.json"
    arguments = ["--model", str(tmp_path / "model"), "--data", "random:120", "--limit", "11", "--batch-size", "2"]
    arguments += ["--length", "12", "--device", "cpu", "--features", "none", "--no-lpips", "--json-file", str(file)]
    first, second = launch("reconstruction.py", arguments, 2)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "PSNR" in first.stdout
    assert second.stdout == ""
    result = json.loads(file.read_text())
    assert result["processes"] == 2
    assert result["images"] == 11
    source = vistok.open_source("random:120", split="val")
    options = {"limit": 11, "length": 12, "features": "none", "lpips": False, "progress": False}
    alone = evaluate_reconstruction(model, source, batch_size=2, **options)
    assert result["codebook"] == alone["codebook"]
    assert alone["codebook"]["usage"] > 1 / 4096
    for key in ("psnr", "ssim", "tokens_per_image", "bits_per_pixel"):
        assert result[key] == pytest.approx(alone[key], rel=1e-12)
    assert result["data"] == alone["data"] | {"split": "val"}


def test_script_says_what_is_wrong() -> None:
    (done,) = launch("reconstruction.py", ["--model", "nothing_like_it", "--data", "emoji:", "--device", "cpu"], 1)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("reconstruction.py: error: ")
    assert "Traceback" not in done.stderr


def test_alone_all_is_the_identity() -> None:
    x = torch.arange(3)
    assert sum_over_processes(x, None) is x
    assert main_first(lambda: 5, None) == 5
    assert all_agree(7, None)
