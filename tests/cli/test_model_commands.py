"""``models``, ``info``, ``doctor`` and ``convert``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import refused, run, run_json
from safetensors.torch import load_file

from vistok.hub import from_pretrained, to_published
from vistok.registry import list_models


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_models())
    found = run_json(capsys, "models", "titok_*", "--kind", "tokenizer")
    assert [card["name"] for card in found] == list_models("titok_*", kind="tokenizer")
    assert found[0].keys() >= {"family", "config", "licence", "metrics", "buildable"}
    everything = run_json(capsys, "models", "--all")
    assert {card["name"] for card in everything} == set(list_models(buildable=False))
    assert run_json(capsys, "models", "no such model") == []
    assert run("models", "--markdown") == 0 and "| `titok_l32.imagenet` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["titok_s128.imagenet", "titok_tiny_32.emoji", "digit_ar_tiny.emoji", "rar_b.imagenet"]
)
def test_info_of_a_registered_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", name) == 0 and name in capsys.readouterr().out
    found = run_json(capsys, "info", name)
    assert found["name"] == name and ("values" in found) == found["buildable"]


def test_info_of_a_folder_and_a_file(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_json(capsys, "info", models / "ordered")
    assert folder == run_json(capsys, "info", models / "ordered" / "model.safetensors")
    model = from_pretrained(models / "ordered")
    assert folder["values"] == sum(value.numel() for value in model.state_dict().values())
    assert folder["weight_hash"] == model.weight_hash() and folder["config"]["num_tokens"] == 6


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert "vistok 0" in text and "torch " in text and "emoji:" in text
    found = run_json(capsys, "doctor")
    assert found["healthy"] and found["data"]["emoji:"] > 1000 and "eval" in found["extras"]


# convert.


def test_convert_there_and_back(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = to_published(from_pretrained(models / "fixed"))
    torch.save(state, "official.bin")
    first = run_json(capsys, "convert", "official.bin", "ours")
    assert first["layout"] == "vistok" and load_file("ours/model.safetensors").keys() != state.keys()
    second = run_json(capsys, "convert", "ours", "again.safetensors", "--to", "published")
    again = load_file("again.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    third = run_json(
        capsys, "convert", "again.safetensors", "titok_l32.imagenet"
    )  # a folder may have a dot in its name
    assert first["weight_hash"] == second["weight_hash"] == third["weight_hash"]
    assert from_pretrained("titok_l32.imagenet").weight_hash() == first["weight_hash"]
    assert run("convert", "again.safetensors", "sub/folder") == 0 and "wrote" in capsys.readouterr().out


def test_convert_refuses(models: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "looks like a file" in refused(capsys, "convert", models / "fixed", "x.safetensors")
    assert "looks like a file" in refused(capsys, "convert", models / "fixed", "odd.png")
    assert ".safetensors, got" in refused(capsys, "convert", models / "fixed", "x.bin", "--to", "published")
    assert "not part of it" in refused(capsys, "convert", models / "ordered", "x.safetensors", "--to", "published")
