"""Rules on composed scenes: is what the caption says there, as often, and where it says? Without any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes import RELATIONS, Scene, parse_scene, sprite, sprite_side
from vistok.errors import VistokError
from vistok.search.verifiers.base import Verifier
from vistok.tokens import Tokens

_CLOSE = 0.2  # root mean square difference from the emoji up to which a place shows it
_TIE_BREAK = 0.1  # weight of how close the best places are, beside the rules


@dataclass(frozen=True)
class Sighting:
    """A place where a thing was found.

    Attributes:
        left, top: of its upper left corner, in pixels.
        difference: root mean square from the emoji, over its pixels.
    """

    left: int
    top: int
    difference: float


class SceneVerifier(Verifier):
    """The share of a scene's rules that an image keeps, and a little for how close it comes.

    Rules: each kind of thing is there, and in the right number (one rule each), and stands where the relation says.
    Conditions are captions as ``vistok.data.scenes`` writes them ("two red apples left of a cat"), or ``Scene``s.
    Things are found by comparing every place with the emoji.

    Args:
        close: how large the root mean square difference may be at a place that shows a thing.
    """

    name = "scene"

    def __init__(self, *, close: float = _CLOSE) -> None:
        self.close = close

    def settings(self) -> dict[str, Any]:
        """How close a thing must come."""
        return {"close": self.close}

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``."""
        return torch.tensor(
            [self._score(image.double().cpu(), _scene(entry)) for image, entry in zip(images, condition, strict=True)],
            dtype=torch.float64,
        )

    def _score(self, image: Tensor, scene: Scene) -> float:
        rules: list[bool] = []
        seen: list[list[Sighting]] = []
        nearness = 0.0
        for thing in scene.things:
            best, found = find_things(image, thing.name, close=self.close)
            rules += [bool(found), len(found) == thing.count]
            nearness += max(0.0, 1.0 - best) / len(scene.things)
            seen.append(found)
        if scene.relation:
            side = sprite_side(image.shape[-1])
            rules.append(bool(seen[0]) and bool(seen[1]) and _stands(seen[0], seen[1], scene.relation, side))
        return sum(rules) / len(rules) + _TIE_BREAK * nearness


def find_things(image: Tensor, name: str, *, close: float = _CLOSE) -> tuple[float, list[Sighting]]:
    """Where an image [3, S, S] shows a thing: the least difference anywhere, and the places where it is small.

    Of places that overlap by more than half, the best counts.
    """
    side = sprite_side(image.shape[-1])
    pixels, mask = sprite(name, side)
    weight = torch.from_numpy(mask).to(image)
    wanted = torch.from_numpy(pixels.copy()).to(image).permute(2, 0, 1) / 255.0
    kernels = torch.stack([weight.expand(3, -1, -1), wanted * weight])
    # The sum of w (x - t)^2 at all places at once: w x^2 - 2 w t x + w t^2.
    squares = F.conv2d(image[None].square(), kernels[:1]) - 2 * F.conv2d(image[None], kernels[1:])
    squares = (squares + (wanted.square() * weight).sum()).clamp_min(0.0)
    differences = (squares / (3 * weight.sum())).sqrt()[0, 0]
    found: list[Sighting] = []
    left = differences.clone()
    while left.numel() and float(left.min()) <= close:
        place = int(left.argmin())
        top, across = divmod(place, left.shape[1])
        found.append(Sighting(across, top, float(left[top, across])))
        reach = side // 2
        left[max(0, top - reach) : top + reach + 1, max(0, across - reach) : across + reach + 1] = float("inf")
    return float(differences.min()), found


def _stands(first: list[Sighting], second: list[Sighting], relation: str, side: int) -> bool:
    """Whether the middle of the first things is on the right side of the second's, by half a thing or more."""
    across, down = RELATIONS[relation]

    def middle(things: list[Sighting]) -> tuple[float, float]:
        return sum(thing.left for thing in things) / len(things), sum(thing.top for thing in things) / len(things)

    (a, b), (c, d) = middle(first), middle(second)
    return (a - c) * across + (b - d) * down >= side / 2


def _scene(condition: Any) -> Scene:
    if isinstance(condition, Scene):
        return condition
    if not isinstance(condition, str):
        raise VistokError(f"the verifier scene reads captions such as 'two cats left of a dog', got {condition!r}")
    return parse_scene(condition)
