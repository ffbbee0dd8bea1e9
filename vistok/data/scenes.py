"""Pictures composed of emoji by rule, with captions that say what is where: text alignment that can be checked by rule.

A scene is a thing, or a number of them, and maybe another beside it: "two red apples left of a cat" is two, and a relation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from vistok.data.embedded import EmojiSource
from vistok.errors import DataError, nearest
from vistok.seeds import stable_seed

NUMBERS = ("a", "two", "three", "four")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SPRITE_SHARE = 0.28  # a thing's side, of the picture's
_TRIES = 200


@dataclass(frozen=True)
class SceneThing:
    """Things of one kind.

    Attributes:
        name: of an emoji, in lower case.
        count: 1 to 4.
    """

    name: str
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(NUMBERS):
            raise DataError(f"a scene has 1 to {len(NUMBERS)} things of a kind, got {self.count}")

    @property
    def text(self) -> str:
        """As a caption has it: "a cat", "two cats"."""
        article = "an" if self.count == 1 and self.name[:1] in "aeiou" else NUMBERS[self.count - 1]
        return f"{article} {self.name}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        things: one kind or two.
        relation: where the first are from the second: a name of ``RELATIONS``; "" with one kind.
    """

    things: tuple[SceneThing, ...]
    relation: str = ""

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2) or (len(self.things) == 2) != (self.relation in RELATIONS):
            raise DataError(
                f"a scene has one kind of thing, or two with one of {', '.join(RELATIONS)} between them; "
                f"got {len(self.things)} and {self.relation!r}"
            )

    @property
    def caption(self) -> str:
        """The scene as a text; ``parse_scene`` reads it."""
        return f" {self.relation} ".join(thing.text for thing in self.things)


def parse_scene(caption: str) -> Scene:
    """The scene of a caption.

    Raises:
        DataError: it is not written as scenes' captions are, or an unknown thing; the message has the nearest names.
    """
    text = " ".join(caption.lower().split())
    for relation in RELATIONS:
        first, found, second = text.partition(f" {relation} ")
        if found:
            return Scene((_parse_thing(first), _parse_thing(second)), relation)
    return Scene((_parse_thing(text),))


def _parse_thing(text: str) -> SceneThing:
    word, _, name = text.partition(" ")
    word = "a" if word in ("an", "one") else word
    names = sprite_names()
    if word not in NUMBERS or not name:
        raise DataError(
            f"a scene's things begin with {', '.join(NUMBERS)}, as in 'two cats left of a dog'; got {text!r}"
        )
    count = NUMBERS.index(word) + 1
    if name not in names and count > 1 and name.removesuffix("s") in names:
        name = name.removesuffix("s")
    if name not in names:
        raise DataError(f"there is no emoji {name!r}; {nearest(name, names)}")
    return SceneThing(name, count)


def compose_scene(
    scene: Scene, *, size: int = 64, seed: int = 0, ground: Sequence[int] = (255, 255, 255)
) -> Image.Image:
    """A picture of the scene: things on a flat ground, nowhere one over another.

    Args:
        scene: what is shown.
        size: side in pixels.
        seed: of the places.
        ground: its colour.
    Raises:
        DataError: there is no room.
    """
    side = sprite_side(size)
    draw = random.Random(stable_seed(seed, scene.caption))
    kinds = [index for index, thing in enumerate(scene.things) for _ in range(thing.count)]
    for _ in range(_TRIES):
        places = [(draw.randint(0, size - side), draw.randint(0, size - side)) for _ in kinds]
        if _apart(places, side) and _related(places, kinds, scene.relation, side):
            break
    else:
        raise DataError(f"there is no room for {scene.caption!r} in {size} pixels; take fewer things")
    picture = Image.new("RGB", (size, size), tuple(ground))
    for (left, top), kind in zip(places, kinds, strict=True):
        pixels, mask = sprite(scene.things[kind].name, side)
        picture.paste(Image.fromarray(pixels), (left, top), Image.fromarray((mask * 255).astype(np.uint8)))
    return picture


def sprite_side(size: int) -> int:
    """Side of a thing in a picture of this side."""
    return max(8, round(size * SPRITE_SHARE))


@lru_cache(maxsize=256)
def sprite(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An emoji, uint8 [side, side, 3], and where it is not ground, float [side, side] of 0 and 1."""
    source = _emoji()
    image = source.image(_places()[name])
    pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    return pixels, (pixels.min(axis=2) < 250).astype(np.float64)


def sprite_names() -> Sequence[str]:
    """All things there are."""
    return tuple(_places())


@lru_cache(maxsize=1)
def _emoji() -> EmojiSource:
    return EmojiSource()


@lru_cache(maxsize=1)
def _places() -> dict[str, int]:
    source = _emoji()
    return {source.caption(index): index for index in range(len(source))}


def _apart(places: Sequence[tuple[int, int]], side: int) -> bool:
    return all(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= side for index, a in enumerate(places) for b in places[index + 1 :]
    )


def _related(places: Sequence[tuple[int, int]], kinds: Sequence[int], relation: str, side: int) -> bool:
    if not relation:
        return True
    across, down = RELATIONS[relation]
    first = [place for place, kind in zip(places, kinds, strict=True) if kind == 0]
    second = [place for place, kind in zip(places, kinds, strict=True) if kind == 1]
    return all((a[0] - b[0]) * across + (a[1] - b[1]) * down >= side for a in first for b in second)
