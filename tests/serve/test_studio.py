"""What the page's controls do, and that the page can be built."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vistok
from vistok.errors import VistokError
from vistok.serve.studio import METHODS, Studio


@pytest.fixture(scope="module")
def studio() -> Studio:
    names = ("vistok_ordered", "vistok_adaptive", "vistok_writer")
    return Studio(*(vistok.from_pretrained(name) for name in names))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return vistok.open_source("photos:", split="val").image(20)


def numbers(text: str) -> list[float]:
    """All numbers of a line."""
    cleaned = "".join(character if character.isdigit() or character in ".-" else " " for character in text)
    return [float(part.strip(".")) for part in cleaned.split() if part.strip(".-")]


def test_more_tokens_are_more_bits_and_less_error(studio: Studio, picture: Image.Image) -> None:
    shown = [studio.reconstruct(picture, count) for count in (1, 16, 256)]
    bits = [numbers(each.text)[1] for each in shown]
    quality = [float(each.text.split("PSNR **")[1].split()[0]) for each in shown]
    assert bits == [12, 192, 3072] and quality == sorted(quality) and quality[-1] - quality[0] > 5
    assert all(each.picture.width > 2 * each.picture.height * 0.8 for each in shown)


def test_a_moved_slider_does_not_encode_again(
    studio: Studio, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.reconstruct(picture, 3)
    with monkeypatch.context() as patch:
        patch.setattr(studio.ordered, "encode", lambda *_: pytest.fail("encoded again"))
        studio.reconstruct(picture, 9)
    other = picture.rotate(90)
    assert studio.reconstruct(other, 9).text != studio.reconstruct(picture, 9).text


def test_smaller_errors_take_more_tokens(studio: Studio, picture: Image.Image) -> None:
    counts = [numbers(studio.count(picture, error).text)[0] for error in (0.3, 0.1, 0.05)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_generation_is_of_the_seed_and_a_beam_shows_its_steps(studio: Studio) -> None:
    one = list(studio.draw("red heart", None, "one draw", 1, 5))
    assert len(one) == 1
    assert next(studio.draw("red heart", None, "one draw", 1, 5)).picture.tobytes() == one[0].picture.tobytes()
    assert next(studio.draw("", "Flags", "best of N", 3, 5)).picture.tobytes() != one[0].picture.tobytes()
    beam = list(studio.draw("red heart", None, "beam", 8, 5))
    assert len(beam) > 3 and beam[0].text.endswith(": 1 tokens") and "nats" in beam[-1].text


def test_bad_input(studio: Studio, picture: Image.Image) -> None:
    with pytest.raises(VistokError, match="Flogs"):
        list(studio.draw("", "Flogs", METHODS[0], 1, 0))
    with pytest.raises(VistokError, match="not ordered"):
        Studio(studio.adaptive)
    with pytest.raises(VistokError, match="not adaptive"):
        Studio(studio.ordered, studio.ordered)
    alone = Studio(studio.ordered)
    with pytest.raises(VistokError, match="--adaptive"):
        alone.count(picture, 0.1)
    with pytest.raises(VistokError, match="--generator"):
        list(alone.draw("x", None, METHODS[0], 1, 0))


def test_the_page_can_be_built(studio: Studio) -> None:
    pytest.importorskip("gradio", reason="gradio (extra [demo]) is not installed")
    from vistok.serve.page import build_page

    page = build_page(studio)
    labels = {getattr(block, "label", None) for block in page.blocks.values()}
    assert {"tokens", "wanted mean absolute error", "budget: draws, or candidates of a beam's step"} <= labels
    draw = next(handler.fn for handler in page.fns.values() if handler.fn is not None and handler.fn.__name__ == "draw")
    picture, told = list(draw(None, None, METHODS[0], None, None))[-1]  # all fields emptied
    assert picture.width > 64 and "nats" in told


def test_without_gradio_it_says_what_to_install(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from vistok.errors import MissingExtraError
    from vistok.serve.page import build_page

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"vistok\[demo\]"):
        build_page(studio)


def test_models_stay_as_they_are(studio: Studio) -> None:
    assert not any(module.training for module in studio.ordered.modules()) and not torch.is_inference_mode_enabled()
