"""Named views: torchvision's ten crops, mirror images, and the random crops of training."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import TenCrop

from vistok.data import ImageDataset, open_source
from vistok.data.transforms import crop_image
from vistok.data.views import Views
from vistok.errors import DataError
from vistok.seeds import stable_seed


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "factor"), [(32, 1.1), (40, 1.05), (24, 1.5), (33, 1.1), (16, 1.0)])
@pytest.mark.parametrize("crop", ["center", "arc"])
def test_ten_crops_are_torchvisions(size: int, factor: float, crop: str) -> None:
    whole = picture(75, 61)
    views = Views(f"ten_crop:{factor}", size, crop)(whole, 0, 0)
    wanted = TenCrop(size)(crop_image(whole, int(size * factor), crop=crop))
    assert views.shape == (10, size, size, 3) and views.dtype == np.uint8
    for view, want in zip(views, wanted, strict=True):
        assert np.array_equal(view, np.asarray(want))


def test_views_are_joined() -> None:
    whole = picture(50, 40)
    both = Views("flip+ten_crop", 32)
    assert both.count == 12 and both(whole, 0, 0).shape == (12, 32, 32, 3)
    center, mirrored = both(whole, 0, 0)[:2]
    assert np.array_equal(center, np.asarray(crop_image(whole, 32))) and np.array_equal(mirrored, center[:, ::-1])
    assert np.array_equal(Views("center", 32)(whole, 0, 0)[0], center)
    assert np.array_equal(both(whole, 0, 0)[2:], Views("ten_crop:1.1", 32)(whole, 5, 6))


def test_random_views_are_those_of_training() -> None:
    source = open_source("random:3")
    images = ImageDataset(source, image_size=24, crop="arc_random", flip=0.5, train=True)
    views = Views("random:4", 24, "arc")
    pixels = views(source.image(2), 2, 7)
    assert views.count == 4
    for view in range(4):
        image = images[2, stable_seed(7, 2, view)]["image"]
        assert np.array_equal((image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8), pixels[view])
    assert not np.array_equal(pixels, views(source.image(2), 2, 8))
    state = random.getstate()
    views(source.image(0), 0, 0)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ten_crops", "did you mean ten_crop"),
        ("", "unknown views"),
        ("center:2", "take no number"),
        ("random", "random:4"),
        ("random:0", "random:4"),
        ("random:2.5", "random:4"),
        ("ten_crop:0.9", "from 1 to 4"),
        ("ten_crop:nan", "from 1 to 4"),
        ("flip+", "unknown views"),
    ],
)
def test_bad_views(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Views(spec, 32)


def test_views_want_a_crop_that_draws_nothing() -> None:
    with pytest.raises(DataError, match="take 'arc'"):
        Views("center", 32, "arc_random")
    with pytest.raises(DataError, match="unknown crop"):
        Views("center", 32, "middle")
