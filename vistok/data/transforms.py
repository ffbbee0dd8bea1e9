"""Crops by name: how a picture of any shape becomes a square, and then a tensor.

The name of the crop is part of a result, since it moves FID. What official code uses:

- ``center``: the shorter edge is resized to the size (bicubic), then the centre is cut out; the
  same pixels as torchvision's ``Resize`` and ``CenterCrop``. The evaluations of TiTok, TA-TiTok,
  One-D-Piece and KARL; FlexTok's demo does it with ``bilinear``, LARP's clips too.
- ``arc``: ADM's ``center_crop_arr`` (arXiv:2105.05233): halve with a box filter while the shorter
  edge is at least twice the size, then bicubic, then the centre. LlamaGen and GigaTok, and the
  reference batches of the ADM evaluator.
- ``arc_random``: ADM's ``random_crop_arr``: as ``arc``, with the shorter edge between the size and
  5/4 of it, and a random square cut out. Training of LlamaGen and GigaTok.
- ``random``: the shorter edge is resized to the size, then a random square is cut out. Training of
  TiTok, TA-TiTok and One-D-Piece.
- ``squash``: both edges are resized to the size, whatever the shape. SEED.
- ``pad``: the longer edge is resized to the size, and white is added on both sides. No official
  evaluation; keeps the whole picture.

All of them resize with Pillow, so with antialiasing, and enlarge a picture that is too small.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistok.errors import DataError, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A picture of 30,000 x 1 pixels would ask for terabytes once its shorter edge is 256.
_MAX_RESIZED_PIXELS = 1 << 27

# The largest enlargement of ``arc_random``: at least four fifths of the shorter edge stay in view.
_LARGEST_ZOOM = 1.25

Position = tuple[float, ...]


def crop_image(
    image: Image.Image,
    size: int,
    *,
    crop: str = "center",
    interpolation: str = "bicubic",
    position: Position = (0.5, 0.5),
) -> Image.Image:
    """Make a picture square.

    Args:
        image: 8-bit RGB of any shape.
        size: side of the result in pixels.
        crop: one of ``CROPS``.
        interpolation: one of ``INTERPOLATIONS``.
        position: where ``random`` and ``arc_random`` cut, as (x, y) in [0, 1), or (x, y, zoom) where the third says how
            large ``arc_random`` makes the picture first; the other crops ignore it.
    Raises:
        DataError: unknown crop or interpolation, size below 1, or a picture so thin that
            resizing it would take too much memory.
    """
    check_names(crop, interpolation)
    if size < 1:
        raise DataError(f"pictures are cropped to a positive size, got {size}")
    return CROPS[crop](image, size, INTERPOLATIONS[interpolation], position)


def check_names(crop: str, interpolation: str) -> None:
    """Refuse an unknown crop or interpolation.

    Raises:
        DataError: with the nearest names.
    """
    if crop not in CROPS:
        raise DataError(f"unknown crop {crop!r}; {nearest(crop, CROPS)}")
    if interpolation not in INTERPOLATIONS:
        raise DataError(f"unknown interpolation {interpolation!r}; {nearest(interpolation, INTERPOLATIONS)}")


def shift_pixels(pixels: np.ndarray, right: int, down: int) -> np.ndarray:
    """Move a picture; what comes into view repeats the edge (so white stays white).

    Args:
        pixels: [H, W, 3].
        right: pixels to the right, negative to the left; |right| < W.
        down: pixels downwards, negative upwards; |down| < H.
    """
    height, width = pixels.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return pixels[rows][:, columns]


def prepare_pixels(
    picture: Image.Image,
    rng: random.Random,
    size: int,
    *,
    crop: str,
    interpolation: str = "bicubic",
    flip: float = 0.0,
    shift: float = 0.0,
) -> np.ndarray:
    """A picture as training shows it: cropped, perhaps mirrored, perhaps moved; uint8 [S, S, 3].

    Args:
        picture: 8-bit RGB of any shape.
        rng: draws; the options take the same draws whatever the others are.
        size: S.
        crop, interpolation: names.
        flip: probability of a left-right flip.
        shift: largest move as a fraction of the side.
    """
    # Always all six draws: changing one option leaves the others' draws as they were. Only
    # random() is the same in all versions of Python; randint() need not be.
    x, y, mirror, right, down, zoom = (rng.random() for _ in range(6))
    pixels = np.asarray(crop_image(picture, size, crop=crop, interpolation=interpolation, position=(x, y, zoom)))
    if mirror < flip:
        pixels = pixels[:, ::-1]
    most = min(round(shift * size), size - 1)
    return shift_pixels(pixels, _between(right, most), _between(down, most)) if most else pixels


def _between(draw: float, most: int) -> int:
    """A draw in [0, 1) as a whole number from -most to most."""
    return int(draw * (2 * most + 1)) - most


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """8-bit RGB [H, W, 3] as float32 in [0, 1], shape [3, H, W]."""
    pixels = np.array(image, dtype=np.uint8).transpose(2, 0, 1)  # a copy: torch wants to own writable memory
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(255)


def _center(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    image = _resize_shorter(image, size, filter)
    # round half to even, as torchvision's CenterCrop
    return _cut(image, size, round((image.width - size) / 2), round((image.height - size) / 2))


def _arc(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    image = _arc_resize(image, size, filter)
    return _cut(image, size, (image.width - size) // 2, (image.height - size) // 2)


def _arc_random(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    x, y, *zoom = position
    largest = math.ceil(size * _LARGEST_ZOOM)
    edge = size + int(zoom[0] * (largest - size + 1)) if zoom else size
    image = _arc_resize(image, edge, filter)
    return _cut(image, size, int(x * (image.width - size + 1)), int(y * (image.height - size + 1)))


def _arc_resize(image: Image.Image, edge: int, filter: Image.Resampling) -> Image.Image:
    """Bring the shorter edge to a length: halves first."""
    while min(image.size) >= 2 * edge:
        image = _resize(image, image.width // 2, image.height // 2, Image.Resampling.BOX)
    scale = edge / min(image.size)
    return _resize(image, round(image.width * scale), round(image.height * scale), filter)


def _random(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    image = _resize_shorter(image, size, filter)
    x, y = position[:2]
    return _cut(image, size, int(x * (image.width - size + 1)), int(y * (image.height - size + 1)))


def _squash(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    return _resize(image, size, size, filter)


def _pad(image: Image.Image, size: int, filter: Image.Resampling, position: Position) -> Image.Image:
    scale = size / max(image.size)
    image = _resize(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)), filter)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


# What a crop that draws becomes where nothing is drawn (validation).
WITHOUT_DRAWS = {"random": "center", "arc_random": "arc"}
CROPS: dict[str, Callable[[Image.Image, int, Image.Resampling, Position], Image.Image]] = {
    "center": _center,
    "arc": _arc,
    "arc_random": _arc_random,
    "random": _random,
    "squash": _squash,
    "pad": _pad,
}


def _resize_shorter(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    shorter, longer = sorted(image.size)
    longer = int(size * longer / shorter)  # torchvision's Resize cuts off, it does not round
    width, height = (size, longer) if image.width <= image.height else (longer, size)
    return _resize(image, width, height, filter)


def _resize(image: Image.Image, width: int, height: int, filter: Image.Resampling) -> Image.Image:
    if width * height > _MAX_RESIZED_PIXELS:
        raise DataError(
            f"a picture of {image.width}x{image.height} would have to be resized to {width}x{height}; "
            "leave it out, or use the crop 'pad' or 'squash'"
        )
    return image if image.size == (width, height) else image.resize((width, height), filter)


def _cut(image: Image.Image, size: int, left: int, top: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def to_uint8(images: Tensor) -> Tensor:
    """Float images of any shape, clamped to [0, 1], as 8-bit values rounded to the nearest."""
    return (images.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
