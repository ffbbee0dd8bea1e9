"""Image codecs as Pillow has them (JPEG, WebP, AVIF): what they give for so many bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from vistok.errors import VistokError, nearest

SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class ImageCodec:
    """A lossy codec and how it is asked for.

    Attributes:
        name: what results call it.
        format: Pillow's word for it.
        qualities: lowest and highest setting.
        options: further arguments of Pillow's ``save``, which make files smaller.
        feature: what Pillow must be built with; "" for nothing.
    """

    name: str
    format: str
    qualities: tuple[int, int]
    options: tuple[tuple[str, int | bool], ...] = ()
    feature: str = ""

    @property
    def version(self) -> str:
        """Of the library behind it, or Pillow's."""
        names = {"jpeg": "libjpeg_turbo", "webp": "webp", "avif": "avif"}
        found = features.version(names[self.name]) if self.name in names else None
        return f"Pillow {Image.__version__}" + (f", {names[self.name]} {found}" if found else "")

    def encode(self, image: Image.Image, quality: int, scale: int = 1) -> bytes:
        """A file, without metadata, of the picture at 1 / ``scale`` of its side."""
        if scale > 1:
            size = tuple(max(1, round(side / scale)) for side in image.size)
            image = image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format=self.format, quality=quality, **dict(self.options))
        return buffer.getvalue()

    def decode(self, data: bytes, size: tuple[int, int]) -> Image.Image:
        """The picture of a file, at ``size`` (bicubic, where it was scaled down)."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            image = image.convert("RGB")
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


CODECS = {
    codec.name: codec
    for codec in (
        ImageCodec("jpeg", "JPEG", (1, 95), (("optimize", True),)),
        ImageCodec("webp", "WEBP", (0, 100), (("method", 6),), "webp"),
        ImageCodec("avif", "AVIF", (0, 100), (), "avif"),
    )
}


def find_codecs(names: Sequence[str]) -> tuple[list[ImageCodec], dict[str, str]]:
    """The codecs that this Pillow can write, and why it cannot write the others.

    Raises:
        VistokError: unknown name.
    """
    found, left_out = [], {}
    Image.init()
    for name in names:
        if name not in CODECS:
            raise VistokError(f"unknown codec {name!r}; {nearest(name, CODECS)}")
        codec = CODECS[name]
        if (codec.feature and not features.check(codec.feature)) or codec.format not in Image.SAVE:
            left_out[name] = f"this Pillow ({Image.__version__}) is built without {codec.format}"
        else:
            found.append(codec)
    return found, left_out


@dataclass(frozen=True)
class CodedImage:
    """What a codec made of a picture.

    Attributes:
        num_bytes: of the file.
        quality, scale: its settings.
        image: decoded, float [3, H, W] in [0, 1].
        psnr: dB to the original; infinite if equal.
    """

    num_bytes: int
    quality: int
    scale: int
    image: Tensor
    psnr: float


class CodecSearch:
    """The settings of one codec on one picture; every setting is tried at most once.

    Args:
        codec: which.
        original: uint8 [3, H, W].
    """

    def __init__(self, codec: ImageCodec, original: Tensor) -> None:
        self.codec = codec
        self._pixels = original.permute(1, 2, 0).contiguous().cpu().numpy()
        self._image = Image.fromarray(self._pixels)
        self._files: dict[tuple[int, int], bytes] = {}
        self._decoded: dict[tuple[int, int], CodedImage] = {}

    def at(self, quality: int, scale: int = 1) -> CodedImage:
        """What one setting gives."""
        key = (quality, scale)
        if key not in self._decoded:
            decoded = np.array(self.codec.decode(self._file(*key), self._image.size))
            error = float(np.square(decoded.astype(np.float64) - self._pixels).mean()) / 255.0**2
            image = torch.from_numpy(decoded).permute(2, 0, 1).float() / 255.0
            psnr = float("inf") if error == 0 else -10.0 * float(np.log10(error))
            self._decoded[key] = CodedImage(len(self._file(*key)), quality, scale, image, psnr)
        return self._decoded[key]

    def best_within(self, num_bytes: int, *, scales: Sequence[int] = SCALES) -> CodedImage | None:
        """The best PSNR in at most so many bytes, or None where even the smallest file is larger.

        Bisection on the quality setting at each scale; what is returned was measured to fit.

        Args:
            num_bytes: of the whole file.
            scales: by which the picture may be scaled down first; (1,) for not at all.
        """
        found = []
        for scale in scales:
            low, high = self.codec.qualities
            if len(self._file(low, scale)) > num_bytes:
                continue
            while low < high:
                middle = (low + high + 1) // 2
                if len(self._file(middle, scale)) <= num_bytes:
                    low = middle
                else:
                    high = middle - 1
            found.append(self.at(low, scale))
        return max(found, key=lambda coded: coded.psnr, default=None)

    def _file(self, quality: int, scale: int) -> bytes:
        if (quality, scale) not in self._files:
            self._files[quality, scale] = self.codec.encode(self._image, quality, scale)
        return self._files[quality, scale]
