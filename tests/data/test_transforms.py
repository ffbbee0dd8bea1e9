"""Crops: the same pixels as the official code, whatever the shape of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistok.data.transforms import CROPS, INTERPOLATIONS, crop_image, shift_pixels, to_tensor
from vistok.errors import DataError


def _noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    crop=st.sampled_from(sorted(CROPS)),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    position=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_always_a_square_of_the_size(width, height, size, crop, interpolation, position):
    image = crop_image(_noise(width, height), size, crop=crop, interpolation=interpolation, position=position)
    assert image.size == (size, size) and image.mode == "RGB"


@pytest.mark.parametrize("shape", [(64, 64), (101, 64), (64, 101), (37, 53), (10, 12), (333, 50)])
def test_center_equals_torchvision(shape):
    transforms = pytest.importorskip("torchvision.transforms")
    for size in (32, 33):
        official = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
            ]
        )
        image = _noise(*shape)
        assert torch.equal(to_tensor(crop_image(image, size)), official(image))


def test_arc_halves_first():
    # 4 x 4 blocks, so that halving twice with a box filter gives exact averages and nothing is left to resize.
    image = _noise(128, 160)
    blocks = np.asarray(image, dtype=float).reshape(40, 4, 32, 4, 3).mean(axis=(1, 3))
    result = np.asarray(crop_image(image, 32, crop="arc"), dtype=float)
    assert np.abs(result - blocks[4:36]).max() <= 2  # four roundings to 8 bits, of half a step each
    assert np.abs(np.asarray(crop_image(image, 32), dtype=float) - blocks[4:36]).max() > 10


def test_random_reaches_both_ends_and_nothing_else():
    image = _noise(40, 20)
    left = crop_image(image, 20, crop="random", position=(0.0, 0.5))
    right = crop_image(image, 20, crop="random", position=(0.999999, 0.5))
    assert np.array_equal(left, np.asarray(image)[:, :20]) and np.array_equal(right, np.asarray(image)[:, 20:])


def test_arc_random_zooms_up_to_a_quarter_and_reaches_both_ends():
    image = _noise(40, 20)
    for x, part in ((0.0, slice(0, 20)), (0.999999, slice(20, 40))):  # no zoom: the picture's own pixels
        assert np.array_equal(
            crop_image(image, 20, crop="arc_random", position=(x, 0.5, 0.0)), np.asarray(image)[:, part]
        )
    assert np.array_equal(crop_image(image, 20, crop="arc_random"), crop_image(image, 20, crop="arc"))
    enlarged = np.asarray(image.resize((50, 25), Image.Resampling.BICUBIC))
    zoomed = crop_image(image, 20, crop="arc_random", position=(0.999999, 0.0, 0.999999))
    assert np.array_equal(zoomed, enlarged[:20, 30:])
    large = _noise(200, 100)  # halved with a box filter first, as often as the enlarged edge of 24 allows
    halved = large.resize((100, 50), Image.Resampling.BOX).resize((50, 25), Image.Resampling.BOX)
    wanted = np.asarray(halved.resize((48, 24), Image.Resampling.BICUBIC))[:20, :20]
    assert np.array_equal(crop_image(large, 20, crop="arc_random", position=(0.0, 0.0, 0.7)), wanted)


def test_pad_keeps_everything_on_white():
    padded = np.asarray(crop_image(Image.new("RGB", (40, 20), "black"), 20, crop="pad"))
    assert (padded[:5] == 255).all() and (padded[15:] == 255).all() and (padded[5:15] == 0).all()


def test_shift_repeats_the_edge():
    pixels = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    moved = shift_pixels(pixels, 2, -1)
    assert np.array_equal(moved[:3, 2:], pixels[1:, :3])
    assert np.array_equal(moved[:3, 0], pixels[1:, 0]) and np.array_equal(moved[3], moved[2])
    assert np.array_equal(shift_pixels(pixels, 0, 0), pixels)


def test_refuses():
    with pytest.raises(DataError, match="positive size"):
        crop_image(_noise(4, 4), 0)
    with pytest.raises(DataError, match="resized to"):
        crop_image(Image.new("RGB", (30_000, 1)), 256)
    assert crop_image(Image.new("RGB", (30_000, 1)), 256, crop="pad").size == (256, 256)


def test_to_tensor_range():
    tensor = to_tensor(Image.new("RGB", (3, 2), (0, 51, 255)))
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
