"""Named views of a picture: the crops and mirrorings under which it is tokenized ahead of training.

- ``center``: one view, the picture cropped as the crop says.
- ``flip``: two, that and its mirror image (LlamaGen's extraction without ten crops).
- ``ten_crop``: ten, as LlamaGen (arXiv:2406.06525) and GigaTok (arXiv:2504.08736) extract their codes: the picture is cropped
  to 1.1 times the size, and the four corners and the centre are cut out of that and of its mirror image, in the order of
  torchvision's ``TenCrop``. ``ten_crop:1.05`` takes another factor.
- ``random:N``: N draws of a random crop and mirroring, as in training on the fly.
- several of them: ``ten_crop+ten_crop:1.05``, which are the twenty views of LlamaGen's training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vistok.data.transforms import WITHOUT_DRAWS, check_names, crop_image, prepare_pixels
from vistok.errors import DataError, nearest
from vistok.seeds import stable_seed

NAMES = ("center", "flip", "ten_crop", "random")
TEN_CROP_RANGE = 1.1
_LARGEST_RANGE = 4.0
_WITH_DRAWS = {without: crop for crop, without in WITHOUT_DRAWS.items()}


@dataclass(frozen=True)
class Views:
    """The views of every picture.

    Attributes:
        spec: names, see above.
        size: S, side in pixels.
        crop: a name of ``vistok.data.transforms`` that draws nothing; random views crop as its counterpart that draws does,
            where there is one.
        interpolation: a name of ``vistok.data.transforms``.
    Raises:
        DataError: an unknown name, or a number out of range.
    """

    spec: str
    size: int
    crop: str = "center"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        check_names(self.crop, self.interpolation)
        if self.crop in WITHOUT_DRAWS:
            raise DataError(
                f"views are cropped alike, and the crop {self.crop!r} draws; take {WITHOUT_DRAWS[self.crop]!r}, "
                "and views=random:N for random crops"
            )
        object.__setattr__(self, "_parts", tuple(_parse(part) for part in self.spec.split("+")))

    @property
    def count(self) -> int:
        """V, the number of views."""
        return sum({"center": 1, "flip": 2, "ten_crop": 10}.get(name) or int(number) for name, number in self._parts)

    def __call__(self, picture: Image.Image, index: int, seed: int) -> np.ndarray:
        """All views of a picture, uint8 [V, S, S, 3].

        Args:
            picture: 8-bit RGB.
            index: of the picture in its source; what random views draw is a function of it and the seed.
            seed: of the whole.
        """
        views: list[np.ndarray] = []
        for name, number in self._parts:
            if name == "ten_crop":
                views += ten_crops(self._crop(picture, int(self.size * number)), self.size)
            elif name == "random":
                first = len(views)
                views += [self._random(picture, stable_seed(seed, index, first + view)) for view in range(int(number))]
            else:
                center = self._crop(picture, self.size)
                views += [center, center[:, ::-1]] if name == "flip" else [center]
        return np.stack(views)

    def _crop(self, picture: Image.Image, size: int) -> np.ndarray:
        return np.asarray(crop_image(picture, size, crop=self.crop, interpolation=self.interpolation))

    def _random(self, picture: Image.Image, seed: int) -> np.ndarray:
        return prepare_pixels(
            picture,
            random.Random(seed),
            self.size,
            crop=_WITH_DRAWS.get(self.crop, self.crop),
            interpolation=self.interpolation,
            flip=0.5,
        )


def ten_crops(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The four corners and the centre of a picture [H, W, 3], then those of its mirror image, each [size, size, 3]."""
    height, width = pixels.shape[:2]
    bottom, right = height - size, width - size
    middle = (round(bottom / 2), round(right / 2))  # half to even, as torchvision
    for picture in (pixels, pixels[:, ::-1]):
        for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right), middle):
            yield picture[top : top + size, left : left + size]


def _parse(text: str) -> tuple[str, float]:
    """A name, and its number where it has one."""
    name, colon, number = text.strip().partition(":")
    if name not in NAMES:
        raise DataError(f"unknown views {text.strip()!r}; {nearest(name, NAMES)}")
    if name in ("center", "flip"):
        if colon:
            raise DataError(f"the views {name!r} take no number, got {text.strip()!r}")
        return name, 1.0
    try:
        value = float(number) if colon else TEN_CROP_RANGE if name == "ten_crop" else float("nan")
    except ValueError:
        value = float("nan")
    if name == "random" and not (value >= 1 and value == int(value)):
        raise DataError(f"random views want their number, as in random:4; got {text.strip()!r}")
    if name == "ten_crop" and not 1.0 <= value <= _LARGEST_RANGE:
        raise DataError(
            f"ten_crop takes a factor of the size from 1 to {_LARGEST_RANGE:g}, as in ten_crop:1.05; got {text.strip()!r}"
        )
    return name, value
