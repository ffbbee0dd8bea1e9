"""Grids of pictures, and reconstructions in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.hub import create_model
from vistok.metrics.pixel import psnr
from vistok.report.grid import _cut, image_grid, save_image, to_image
from vistok.report.reconstruction import reconstruction_grid


def colour(red: float, green: float, blue: float, size: int = 32) -> torch.Tensor:
    return torch.tensor([red, green, blue])[:, None, None].expand(3, size, size)


def test_pictures_stand_where_they_belong():
    rows = [[colour(1, 0, 0), colour(0, 1, 0)], [None, colour(0, 0, 1)]]
    grid = image_grid(
        rows, column_titles=["a", "b"], row_titles=["one", "two"], captions=[["x", "y"], ["", "z"]], scale=1
    )
    pixels = np.asarray(grid)
    centres = {}
    for name, rgb in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        found = np.argwhere((pixels == rgb).all(axis=-1))
        assert len(found) == 32 * 32
        centres[name] = found.mean(axis=0)
    assert centres["red"][0] == centres["green"][0] < centres["blue"][0]
    assert centres["red"][1] < centres["green"][1] == centres["blue"][1]


def test_small_pictures_are_enlarged_by_whole_factors():
    image = torch.rand(3, 16, 16)
    grid = np.asarray(image_grid([[image]]))
    expected = np.asarray(to_image(image)).repeat(8, axis=0).repeat(8, axis=1)
    assert np.array_equal(grid[4 : 4 + 128, 4 : 4 + 128], expected)


def test_texts_are_cut_to_the_width_of_a_picture():
    from PIL import ImageFont

    font = ImageFont.load_default(size=12)
    short = _cut("a rather long caption", font, 60)
    assert short.endswith("...") and font.getlength(short) <= 60
    assert _cut("abc", font, 60) == "abc"


def test_bad_grids():
    for rows in ([], [[]], [[None]], [[colour(0, 0, 0, 8), colour(0, 0, 0, 9)]]):
        with pytest.raises(VistokError, match="one size"):
            image_grid(rows)
    with pytest.raises(VistokError, match="take one image of a batch"):
        to_image(torch.zeros(2, 3, 4, 4))


def test_pictures_are_saved_whole(tmp_path):
    image = torch.rand(3, 8, 8)
    save_image(image, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(to_image(image)))
    with pytest.raises(OSError, match=r"name it \.png"):
        save_image(image, tmp_path / "a.what")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_reconstructions_by_length():
    tokenizer = create_model("titok_tiny_32.emoji")
    images = torch.rand(3, 3, 64, 64)
    tokenizer.linear.fit(torch.rand(40, 3, 64, 64))
    grid, facts = reconstruction_grid(tokenizer, images, lengths=[1, 32], names=["a", "b", "c"], batch_size=2)
    assert grid.width < grid.height  # three columns, three rows and captions
    assert [fact["name"] for fact in facts] == ["a", "b", "c"]
    decoded = tokenizer.decode(tokenizer.encode(images[:1], length=1))
    assert facts[0]["psnr"][1] == pytest.approx(float(psnr(decoded, images[:1])), abs=1e-3)
    with pytest.raises(VistokError, match="cannot decode 33"):
        reconstruction_grid(tokenizer, images, lengths=[33])
