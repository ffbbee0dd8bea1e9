"""The data part of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass

from vistok.data.transforms import check_names
from vistok.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they are prepared.

    Attributes:
        train: a source (see ``vistok.data.open_source``), opened at its ``train`` split; for a generator also
            ``tokens:FOLDER``, shards that ``vistok tokenize`` has written.
        val: a source for validation, opened at its ``val`` split, or whole where it has none;
            "" means the ``val`` split of ``train``.
        image_size: side in pixels; None means the model's.
        crop: of training pictures, a name of ``vistok.data.transforms``. Validation crops
            the ``center`` where training crops at ``random``, and ``arc`` for ``arc_random``.
        interpolation: a name of ``vistok.data.transforms``.
        flip: probability of a left-right flip in training.
        shift: training pictures move by up to this fraction of their side, edges repeated.
        num_workers: processes that load pictures; 0 loads in the main one.
        max_skipped: how many unreadable pictures are passed over before it is an error.
    """

    train: str
    val: str = ""
    image_size: int | None = None
    crop: str = "random"
    interpolation: str = "bicubic"
    flip: float = 0.5
    shift: float = 0.0
    num_workers: int = 0
    max_skipped: int = 100

    def __post_init__(self) -> None:
        try:
            check_names(self.crop, self.interpolation)
        except DataError as error:
            raise ConfigError(str(error)) from error
        if not self.train:
            raise ConfigError("`train` names no source; try 'emoji:'")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"`flip` is a probability from 0 to 1, got {self.flip}")
        if not 0 <= self.shift < 1:
            raise ConfigError(f"`shift` is a fraction of the side, 0 <= shift < 1, got {self.shift}")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"`image_size` is at least 1, or null for the model's own, got {self.image_size}")
        for name in ("num_workers", "max_skipped"):
            if getattr(self, name) < 0:
                raise ConfigError(f"`{name}` is at least 0, got {getattr(self, name)}")
