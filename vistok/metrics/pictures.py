"""The pictures of a source as batches, cropped as a protocol says; what cannot be read is left out, and named once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vistok.data.sources import ImageSource
from vistok.data.transforms import crop_image, to_tensor
from vistok.errors import DataError, VistokError
from vistok.metrics.protocols import Protocol

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer


def shared_image_size(tokenizers: Mapping[str, Tokenizer]) -> int:
    """The image size of tokenizers that are compared.

    Raises:
        VistokError: no tokenizer, or different sizes.
    """
    if not tokenizers:
        raise VistokError("one tokenizer or more is wanted, got none")
    sizes = {name: tokenizer.image_size for name, tokenizer in tokenizers.items()}
    if len(set(sizes.values())) > 1:
        raise VistokError(f"tokenizers that are compared have one image size, got {sizes}; evaluate them apart")
    return next(iter(sizes.values()))


class PictureBatches:
    """Batches of a source, which may be read several times.

    Args:
        source: the pictures.
        size: S, pixels a side.
        protocol: crop and interpolation.
        batch_size: images at a time.
        limit: take this many pictures, evenly spaced over the source; None takes all.
        progress: show bars.

    Attributes:
        count: pictures read in the last pass.
        unreadable: names of those that could not be.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        protocol: Protocol,
        *,
        batch_size: int = 16,
        limit: int | None = None,
        progress: bool = True,
    ) -> None:
        count = len(source) if limit is None else min(limit, len(source))
        self.indices = [place * len(source) // count for place in range(count)]
        self.source, self.size, self.protocol = source, size, protocol
        self.batch_size, self.progress = batch_size, progress
        self.unreadable: list[str] = []
        self.count = 0

    def __call__(self, what: str) -> Iterator[tuple[list[int], Tensor]]:
        """Indices in the source, and images [B, 3, S, S] in [0, 1].

        Args:
            what: is said beside the bar.
        Raises:
            DataError: no picture at all can be read.
        """
        self.unreadable, self.count = [], 0
        with tqdm(total=len(self.indices), unit="image", desc=what, disable=not self.progress) as bar:
            for start in range(0, len(self.indices), self.batch_size):
                part, images = self.indices[start : start + self.batch_size], []
                read = []
                for index in part:
                    try:
                        picture = self.source.image(index)
                    except DataError:
                        self.unreadable.append(self.source.name(index))
                        continue
                    crop, interpolation = self.protocol.crop, self.protocol.interpolation
                    images.append(to_tensor(crop_image(picture, self.size, crop=crop, interpolation=interpolation)))
                    read.append(index)
                if read:
                    self.count += len(read)
                    yield read, torch.stack(images)
                bar.update(len(part))
        if not self.count:
            raise DataError(
                f"none of {len(self.indices)} pictures of {self.source.spec!r} can be read: "
                f"{', '.join(self.unreadable[:5])}"
            )
