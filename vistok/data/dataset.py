"""A source of pictures as a torch data set: cropped, augmented, and firm against unreadable files.

Whatever is drawn for a sample is a function of its seed, which comes with its index from
``StatelessBatchSampler``: the same in every process, worker and run.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from vistok.data.config import DataConfig
from vistok.data.sampler import Key, sample_seed
from vistok.data.sources import ImageSource, NoValSplitError, open_source
from vistok.data.transforms import WITHOUT_DRAWS, check_names, prepare_pixels, to_tensor
from vistok.errors import DataError

logger = logging.getLogger(__name__)

_LISTED = 20  # unreadable files named in an error
Item = dict[str, Any]


class ImageDataset(Dataset[Item]):
    """Pictures as tensors.

    A picture that cannot be read is logged once, counted, and replaced by another one that its
    sample seed chooses, so that batches keep their size and runs stay equal. The count is shared
    by the workers of a process. An evaluation that must see every picture sets ``max_skipped=0``.

    Args:
        source: what to read.
        image_size: side of the square pictures.
        crop: a name of ``vistok.data.transforms``; with ``train=False``, ``random`` becomes ``center``.
        interpolation: a name of ``vistok.data.transforms``.
        flip: probability of a left-right flip; only with ``train``.
        shift: largest move as a fraction of the side; only with ``train``.
        train: augment.
        max_skipped: different unreadable pictures to pass over before it is an error.
    Raises:
        DataError: empty source, unknown crop or interpolation.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        crop: str = "center",
        interpolation: str = "bicubic",
        flip: float = 0.0,
        shift: float = 0.0,
        train: bool = False,
        max_skipped: int = 100,
    ) -> None:
        check_names(crop, interpolation)
        if not len(source):
            raise DataError(f"the source {source.spec!r} is empty")
        self.source, self.image_size, self.train = source, image_size, train
        self.crop = crop if train else WITHOUT_DRAWS.get(crop, crop)
        self.interpolation, self.flip, self.shift = interpolation, flip, shift
        self.max_skipped = max_skipped
        # Shared memory: workers are processes, and together they may pass over max_skipped.
        self._unreadable = torch.zeros(len(source), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> list[str]:
        """Names of the pictures found unreadable so far, by this process and its workers."""
        return [self.source.name(index) for index in self._unreadable.nonzero().flatten().tolist()]

    def __getitem__(self, key: Key | int) -> Item:
        """One sample.

        Args:
            key: (index, sample_seed), or an index alone, which is then its own seed.
        Returns:
            image float32 [3, S, S] in [0, 1], label int, caption str, and index int: of the picture
            that is really shown, which differs from the key's where that one was unreadable.
        Raises:
            DataError: more than ``max_skipped`` unreadable pictures.
        """
        index, seed = key if isinstance(key, tuple) else (key, key)
        attempt, shown = 0, index
        while True:
            try:
                picture = self.source.image(shown)
                image = self._prepare(picture, random.Random(seed))
                label, caption = self.source.label(shown), self.source.caption(shown)
                return {"image": image, "label": label, "caption": caption, "index": shown}
            except DataError as error:
                self._note_unreadable(shown, error)
            attempt += 1
            shown = sample_seed(seed, attempt) % len(self.source)

    def _prepare(self, picture: Any, rng: random.Random) -> torch.Tensor:
        augmentation = {"flip": self.flip, "shift": self.shift} if self.train else {}
        pixels = prepare_pixels(
            picture, rng, self.image_size, crop=self.crop, interpolation=self.interpolation, **augmentation
        )
        return to_tensor(pixels)

    def _note_unreadable(self, index: int, error: DataError) -> None:
        if not self._unreadable[index]:
            self._unreadable[index] = 1
            logger.warning("%s: picture %d is passed over: %s", self.source.spec, index, error)
        count = int(self._unreadable.sum())
        if count > self.max_skipped or count == len(self):
            names = self.skipped
            more = f" and {count - _LISTED} more" if count > _LISTED else ""
            raise DataError(
                f"{self.source.spec!r}: {count} of {len(self)} pictures cannot be read, more than max_skipped="
                f"{self.max_skipped} allows; repair or remove them, or raise it: {', '.join(names[:_LISTED])}{more}. "
                f"The last one: {error}"
            ) from error


def open_dataset(config: DataConfig, *, train: bool, image_size: int | None = None) -> ImageDataset:
    """The training or validation set of a configuration.

    Args:
        config: what it says.
        train: the training set with augmentation, or the validation set without.
        image_size: the model's, for a configuration that leaves it open.
    Raises:
        DataError: unknown or empty source, or no size.
        NoValSplitError: ``train=False``, no ``val`` named, and the training source has none.
    """
    size = config.image_size or image_size
    if size is None:
        raise DataError(
            "the data configuration leaves image_size open, and no model is there to say it: set image_size"
        )
    return ImageDataset(
        _open(config, train),
        image_size=size,
        crop=config.crop,
        interpolation=config.interpolation,
        flip=config.flip,
        shift=config.shift,
        train=train,
        max_skipped=config.max_skipped,
    )


def collate(batch: Sequence[Item]) -> Item:
    """Samples as one batch: image [B, 3, S, S], label int64 [B], caption list of str, index int64 [B]."""
    return {
        "image": torch.stack([item["image"] for item in batch]),
        "label": torch.tensor([item["label"] for item in batch], dtype=torch.int64),
        "caption": [item["caption"] for item in batch],
        "index": torch.tensor([item["index"] for item in batch], dtype=torch.int64),
    }


def _open(config: DataConfig, train: bool) -> ImageSource:
    if train:
        return open_source(config.train, split="train")
    if not config.val:
        return open_source(config.train, split="val")
    try:
        return open_source(config.val, split="val")
    except NoValSplitError:  # a folder or shards that are the validation set themselves
        return open_source(config.val, split="all")
