"""The models that come with vistok: they load without a network, are what their cards say, and do what they are for."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.data.assets import asset_path
from vistok.metrics.pixel import psnr
from vistok.registry import get_card, list_models

NAMES = [name for name in list_models() if get_card(name).embedded]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_there_is_an_ordered_one_an_adaptive_one_and_a_generator() -> None:
    assert set(NAMES) == {"vistok_ordered", "vistok_adaptive", "vistok_writer"}


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_card(name: str) -> None:
    model = vistok.create_model(name, pretrained=True)
    folder = Path(str(asset_path("weights"))) / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert model.weight_hash() == re.search(r"hash `(\w+)`", card)[1]
    assert (folder / "model.safetensors").stat().st_size <= 15 * 2**20
    assert {"Data", "Recipe", "Licence"} <= set(re.findall(r"\*\*(\w+)\*\*", card))
    assert model.dtype == torch.float32 and model.name == name


def test_all_together_are_small() -> None:
    files = Path(str(asset_path("weights"))).rglob("*.safetensors")
    assert sum(file.stat().st_size for file in files) <= 45 * 2**20


def held_out(spec: str, like: Any) -> torch.Tensor:
    source = vistok.open_source(spec, split="val")
    return vistok.load_images([source.image(index) for index in range(len(source))], like=like)


@pytest.mark.parametrize(("spec", "wanted"), [("photos:", (20.5, 24.5)), ("emoji:", (20.5, 25.5))])
def test_held_out_pictures_at_64_and_at_all_tokens(spec: str, wanted: tuple[float, float]) -> None:
    model = vistok.from_pretrained("vistok_ordered")
    images = held_out(spec, model)
    tokens = model.encode(images)
    for length, least in zip((64, 256), wanted, strict=True):
        assert float(psnr(model.decode(tokens.truncate(length)), images).mean()) > least


def test_the_adaptive_one_gives_noise_more_tokens_than_flat_pictures() -> None:
    model = vistok.from_pretrained("vistok_adaptive")
    flat = torch.full((1, 3, 64, 64), 0.6)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat_count, noise_count = model.encode(torch.cat([flat, noise]), target_error=0.08).lengths.tolist()
    assert flat_count < 10 < 100 < noise_count
    images = held_out("photos:", model)
    counts = [float(model.encode(images, target_error=error).lengths.float().mean()) for error in (0.2, 0.1, 0.05)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_the_writer_goes_with_the_ordered_one() -> None:
    writer, ordered = vistok.from_pretrained("vistok_writer"), vistok.from_pretrained("vistok_ordered")
    assert writer.config.tokenizer_hash == ordered.weight_hash()
    drawn = writer.generate("red heart", 2, seeds=3)
    images = ordered.decode(drawn.tokens)
    assert images.shape == (2, 3, 64, 64)
    assert torch.equal(writer.generate("red heart", 2, seeds=3).tokens.ids, drawn.tokens.ids)
