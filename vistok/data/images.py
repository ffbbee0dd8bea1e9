"""Reading pictures: any common file into plain 8-bit RGB, or an error that names the file.

What every reader of vistok promises: EXIF orientation is applied, transparency is laid on white,
16 bits become 8 by rounding (not by dropping bits), animations give their first frame. Colour
profiles are ignored, as the official data pipelines of all families do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistok.data.transforms import crop_image, to_tensor
from vistok.errors import DataError

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
# Only raster formats: Pillow would start Ghostscript for an EPS file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file: str | Path | BinaryIO, *, name: str = "") -> Image.Image:
    """Read one picture.

    Args:
        file: a path, or an open binary file.
        name: what errors call it; the path if empty.
    Returns:
        A loaded 8-bit RGB picture.
    Raises:
        DataError: no such file, not a picture, truncated, corrupted, too large, or of pixels
            without a fixed range; with the name and the reason.
    """
    name = name or str(file)
    try:
        with Image.open(file, formats=_readable_formats()) as image:
            # Pillow itself only warns up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise DataError(
                    f"{image.width}x{image.height} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}; "
                    "if the picture is trusted, raise PIL.Image.MAX_IMAGE_PIXELS"
                )
            image.load()
            return to_rgb(_upright(image))
    except FileNotFoundError as error:
        raise DataError(f"cannot read the picture {name}: there is no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"cannot read the picture {name}: it is a folder; open it with 'folder:{name}'") from error
    except Image.UnidentifiedImageError as error:
        known = f"it is not a picture of a known format ({', '.join(_readable_formats())})"
        reason = "the file is empty" if _is_empty(file) else known
        raise DataError(f"cannot read the picture {name}: {reason}") from error
    except Exception as error:  # Pillow's decoders raise a dozen classes on corrupted files
        raise DataError(f"cannot read the picture {name}: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as 8-bit RGB; transparency is laid on white.

    Raises:
        DataError: float pixels, or whole numbers outside 0..65535, whose range is unknown.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep(image).convert("RGB")
    if image.has_transparency_data:
        # RGBa (multiplied alpha) and LA/PA go through RGBA, which is the one mode that composites.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_images(
    images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
    *,
    size: int | None = None,
    like: Tokenizer | None = None,
    crop: str | None = None,
    interpolation: str | None = None,
) -> Tensor:
    """Read pictures into one batch for a tokenizer.

    Args:
        images: a path or Pillow picture, or several.
        size: side of the square result; None keeps the pictures as they are, which must then all
            have the same size.
        like: a tokenizer; its ``image_size``, and the crop and interpolation of its card, are used.
        crop: how a picture becomes square (see ``vistok.data.transforms``); ``center`` unless the
            card of ``like`` says otherwise.
        interpolation: ``bicubic`` unless the card of ``like`` says otherwise.
    Returns:
        float32 RGB in [0, 1], shape [B, 3, H, W], on the CPU.
    Raises:
        DataError: unreadable picture, no picture, both ``size`` and ``like``, different sizes.
    """
    items = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not items:
        raise DataError("load_images got no picture; give at least one path or Pillow picture")
    pictures = [_open(item) for item in items]
    card = like.card.preprocessing if like is not None and like.card is not None else {}
    if like is not None:
        if size is not None and size != like.image_size:
            raise DataError(
                f"size={size} contradicts like={like.name}, which takes {like.image_size}; give one of them"
            )
        size = like.image_size
    if size is not None:
        crop = crop or card.get("crop", "center")
        interpolation = interpolation or card.get("interpolation", "bicubic")
        pictures = [crop_image(picture, size, crop=crop, interpolation=interpolation) for picture in pictures]
    elif len({picture.size for picture in pictures}) > 1:
        sizes = sorted({f"{picture.width}x{picture.height}" for picture in pictures})
        raise DataError(f"pictures of different sizes ({', '.join(sizes)}) do not make a batch; give size= or like=")
    return torch.stack([to_tensor(picture) for picture in pictures])  # [B, 3, H, W]


def image_files(folder: str | Path) -> list[Path]:
    """Paths of the pictures below a folder, sorted; told by their suffixes, hidden ones left out."""
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _is_empty(file: str | Path | BinaryIO) -> bool:
    return Path(file).stat().st_size == 0 if isinstance(file, (str, Path)) else file.seek(0, os.SEEK_END) == 0


def _open(item: str | Path | Image.Image) -> Image.Image:
    if isinstance(item, Image.Image):
        return to_rgb(_upright(item))
    if isinstance(item, (str, Path)):
        return read_image(item)
    raise DataError(f"load_images takes paths and Pillow pictures, got {type(item).__name__}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF data is no reason to lose the picture
        turn = None
    return image if turn is None else image.transpose(turn)


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit grey (which Pillow also hands out as 32-bit whole numbers) as 8-bit grey."""
    pixels = np.asarray(image)
    if image.mode == "F":
        raise DataError("32-bit float pixels have no fixed range; store the picture with 8 or 16 bits")
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise DataError(f"pixels from {pixels.min()} to {pixels.max()} do not fit 16 bits; store it with 8 or 16 bits")
    return Image.fromarray(((pixels.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
