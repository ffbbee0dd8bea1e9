"""Composed scenes, and the rules that check them."""

from __future__ import annotations

import pytest
import torch

from vistok.data.scenes import Scene, SceneThing, compose_scene, parse_scene
from vistok.data.transforms import to_tensor
from vistok.errors import DataError, VistokError
from vistok.search import search
from vistok.search.verifiers import as_verifier
from vistok.search.verifiers.scene import find_things

SCENES = [
    Scene((SceneThing("red apple", 2), SceneThing("rocket")), "left of"),
    Scene((SceneThing("rocket"), SceneThing("red apple")), "above"),
    Scene((SceneThing("cat face", 3),)),
    Scene((SceneThing("octopus"),)),
]


def picture(scene: Scene, seed: int = 0, size: int = 64) -> torch.Tensor:
    return to_tensor(compose_scene(scene, seed=seed, size=size))


def test_captions_are_read_as_they_are_written():
    assert [scene.caption for scene in SCENES] == [
        "two red apples left of a rocket",
        "a rocket above a red apple",
        "three cat faces",
        "an octopus",
    ]
    assert [parse_scene(scene.caption) for scene in SCENES] == SCENES
    for text, message in (
        ("red apples", "begin with"),
        ("a rocked", "did you mean rocket"),
        ("a cat face on a", "no emoji"),
    ):
        with pytest.raises(DataError, match=message):
            parse_scene(text)
    with pytest.raises(DataError, match="one kind of thing"):
        Scene((SceneThing("rocket"),), "above")
    with pytest.raises(DataError, match="1 to 4"):
        SceneThing("rocket", 5)


@pytest.mark.parametrize("size", [64, 96])
def test_what_was_composed_is_found(size: int):
    verifier = as_verifier("scene")
    for seed in range(3):
        images = torch.stack([picture(scene, seed, size) for scene in SCENES])
        for row, scene in enumerate(SCENES):
            scores = verifier(images, [scene.caption] * len(SCENES))
            assert scores.argmax() == row and scores[row] == pytest.approx(1.1, abs=0.01)
            assert bool((scores[[other for other in range(4) if other != row]] < 1.0).all())


def test_numbers_and_places_are_rules():
    verifier = as_verifier("scene")
    image = picture(SCENES[0])[None]
    right, more, wrong_side, absent = (
        float(verifier(image, [caption]))
        for caption in (
            "two red apples left of a rocket",
            "three red apples left of a rocket",
            "two red apples right of a rocket",
            "two cat faces",
        )
    )
    assert right > more > absent and right > wrong_side > absent
    assert len(find_things(image[0].double(), "red apple")[1]) == 2
    with pytest.raises(VistokError, match="reads captions"):
        verifier(image, [3])


def test_there_is_no_room_for_everything():
    with pytest.raises(DataError, match="no room"):
        compose_scene(Scene((SceneThing("rocket", 4), SceneThing("red apple", 4)), "left of"), size=16)


def test_a_search_by_rule(tmp_path):
    from vistok.hub import create_model

    torch.manual_seed(0)
    tokenizer = create_model("titok_tiny_32.emoji")
    tokenizer.linear.fit(torch.stack([picture(scene, seed) for scene in SCENES for seed in range(30)]))
    result = search(
        "uniform", tokenizer, "an octopus", method="ar_free", verifier="scene", max_steps=3, budget=40, seeds=0
    )
    assert result.verifier == "scene" and result.cost.verifier_calls <= 40
