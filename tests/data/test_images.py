"""Reading pictures: every kind that data sets hold, and every way in which a file is broken."""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistok.data import load_images, read_image
from vistok.data.images import image_files
from vistok.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _corners() -> Image.Image:
    """16x8: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (16, 8), RED)
    image.paste(GREEN, (8, 0, 16, 4))
    image.paste(BLUE, (0, 4, 8, 8))
    image.paste(WHITE, (8, 4, 16, 8))
    return image


def _near(pixel, color, tolerance=40) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, color, strict=True))


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "top_right"),
    [
        (1, (16, 8), RED, GREEN),
        (2, (16, 8), GREEN, RED),
        (3, (16, 8), WHITE, BLUE),
        (4, (16, 8), BLUE, WHITE),
        (5, (8, 16), RED, BLUE),
        (6, (8, 16), BLUE, RED),
        (7, (8, 16), WHITE, GREEN),
        (8, (8, 16), GREEN, WHITE),
    ],
)
def test_exif_orientation(tmp_path, orientation, size, top_left, top_right):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _corners().save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == size and image.mode == "RGB"
    assert _near(image.getpixel((1, 1)), top_left)
    assert _near(image.getpixel((size[0] - 2, 1)), top_right)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture(tmp_path):
    _corners().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert read_image(tmp_path / "a.jpg").size == (16, 8)


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (255, 0, 0, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == WHITE and read.getpixel((1, 1)) == RED
    assert _near(read.getpixel((2, 2)), (127, 127, 127), 1)


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (4, 4), (10, 0))
    image.putpixel((1, 1), (10, 255))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == WHITE and read.getpixel((1, 1)) == (10, 10, 10)


def test_palette_with_and_without_transparency(tmp_path):
    image = _corners().quantize(8)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=image.getpixel((0, 0)))
    plain, clear = read_image(tmp_path / "plain.png"), read_image(tmp_path / "clear.png")
    assert _near(plain.getpixel((0, 0)), RED, 2) and _near(plain.getpixel((15, 0)), GREEN, 2)
    assert clear.getpixel((0, 0)) == WHITE and _near(clear.getpixel((15, 0)), GREEN, 2)


def test_rgb_with_a_transparent_color(tmp_path):
    _corners().save(tmp_path / "a.png", transparency=BLUE)
    read = read_image(tmp_path / "a.png")
    assert read.getpixel((0, 7)) == WHITE and read.getpixel((0, 0)) == RED


def test_sixteen_bits_are_rounded(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    wanted = np.rint(values / 257).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        read = np.asarray(read_image(tmp_path / name))
        assert np.array_equal(read, np.repeat(wanted[..., None], 3, axis=2))


def test_cmyk_grey_and_one_bit(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert _near(read_image(tmp_path / "cmyk.jpg").getpixel((4, 4)), RED, 8)
    assert read_image(tmp_path / "grey.png").getpixel((4, 4)) == (77, 77, 77)
    assert read_image(tmp_path / "bit.png").getpixel((4, 4)) == WHITE


def test_animation_gives_its_first_frame(tmp_path):
    Image.new("RGB", (8, 8), RED).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)]
    )
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*no fixed range"):
        read_image(tmp_path / "a.tif")


def _noise_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a picture"),
        (_noise_jpeg()[:1500], "truncated"),
        (_noise_jpeg()[:30], ""),
        (_png_header(30_000, 30_000), "limit|bomb"),
        (_png_header(10_000, 10_000), "limit"),  # between Pillow's warning and its error
        (_png_header(16, 16), ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
    ids=["empty", "text", "truncated", "header", "bomb", "large", "no-pixels", "postscript"],
)
def test_broken_files_are_named_with_a_reason(tmp_path, data, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"broken\.jpg.*({reason})"):
        read_image(path)
    with pytest.raises(DataError, match=f"shard/7.*({reason})"):
        read_image(io.BytesIO(data), name="shard/7")


@settings(max_examples=60, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    new=st.binary(min_size=1, max_size=8),
    kind=st.sampled_from(["PNG", "JPEG"]),
)
@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_a_data_error_or_a_picture(place, new, kind):
    file = io.BytesIO()
    _corners().save(file, kind)
    data = bytearray(file.getvalue())
    start = int(place * len(data))
    data[start : start + len(new)] = new
    try:
        assert read_image(io.BytesIO(data), name="x").mode == "RGB"
    except DataError as error:
        assert "picture x" in str(error)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="folder:"):
        read_image(tmp_path)


def test_image_files(tmp_path):
    for name in ("b.PNG", "a/c.jpg", ".x.png", ".y/z.png", "a/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert image_files(tmp_path) == [tmp_path / "a/c.jpg", tmp_path / "b.PNG"]


def test_load_images_stacks_paths_and_pictures(tmp_path):
    _corners().save(tmp_path / "a.png")
    batch = load_images([tmp_path / "a.png", str(tmp_path / "a.png"), _corners()])
    assert batch.shape == (3, 3, 8, 16) and batch.dtype == torch.float32
    assert torch.equal(batch[0], batch[2])
    assert batch[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert load_images(tmp_path / "a.png", size=32).shape == (1, 3, 32, 32)


def test_load_images_like_a_tokenizer():
    card = SimpleNamespace(preprocessing={"crop": "squash"})
    like = SimpleNamespace(name="tiny", image_size=8, card=card)
    squashed = load_images(_corners(), like=like)
    assert torch.equal(squashed, load_images(_corners(), size=8, crop="squash"))
    assert torch.equal(load_images(_corners(), like=like, crop="center"), load_images(_corners(), size=8))
    like.card = None
    assert torch.equal(load_images(_corners(), like=like), load_images(_corners(), size=8))


def test_load_images_refuses(tmp_path):
    with pytest.raises(DataError, match="no picture"):
        load_images([])
    with pytest.raises(DataError, match="16x8, 8x8"):
        load_images([_corners(), Image.new("RGB", (8, 8))])
    with pytest.raises(DataError, match="contradicts"):
        load_images(_corners(), size=4, like=SimpleNamespace(name="tiny", image_size=8, card=None))
    with pytest.raises(DataError, match="got int"):
        load_images([3])
    with pytest.raises(DataError, match="did you mean center"):
        load_images(_corners(), size=4, crop="centre")
    with pytest.raises(DataError, match="did you mean bicubic"):
        load_images(_corners(), size=4, interpolation="cubic")
