"""Data: pictures, labels and captions, opened from a short text, cropped, and in an order that can be resumed."""

from __future__ import annotations

from vistok.data.assets import asset_path
from vistok.data.config import DataConfig
from vistok.data.dataset import ImageDataset, collate, open_dataset
from vistok.data.images import load_images, read_image, to_rgb
from vistok.data.sampler import StatelessBatchSampler
from vistok.data.sources import BaseSource, ImageSource, NoValSplitError, open_source
from vistok.data.transforms import CROPS, INTERPOLATIONS, crop_image, to_tensor

__all__ = [
    "open_source",
    "ImageSource",
    "BaseSource",
    "NoValSplitError",
    "DataConfig",
    "ImageDataset",
    "open_dataset",
    "collate",
    "StatelessBatchSampler",
    "load_images",
    "read_image",
    "to_rgb",
    "crop_image",
    "to_tensor",
    "CROPS",
    "INTERPOLATIONS",
    "asset_path",
]
