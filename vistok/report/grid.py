"""Pictures out of image tensors."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torch import Tensor

from vistok.data.transforms import to_uint8


def save_image(image: Tensor | Image.Image, path: str | Path) -> None:
    """Write one picture ([3, H, W] in [0, 1], or Pillow's) in the format of the path's suffix, whole or not at all."""
    path = Path(path)
    if isinstance(image, Tensor):
        image = Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    image.save(temporary)
    os.replace(temporary, path)
