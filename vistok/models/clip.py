"""CLIP (open_clip): images and texts in one space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.text import make_clip

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImages(nn.Module):
    """Images, and texts, to CLIP's common space, both of length 1.

    Args:
        architecture, weights: open_clip's names; "" for random weights (tests, dry runs).
    Raises:
        CheckpointError: the weights are not to be had.
    """

    def __init__(self, architecture: str, weights: str) -> None:
        super().__init__()
        self.clip, self.tokenize = make_clip(architecture, weights)
        size = self.clip.visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        for name, default in (("mean", _MEAN), ("std", _STD)):
            values = getattr(self.clip.visual, f"image_{name}", None) or default
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """E."""
        return self.clip.visual.output_dim

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, E]; resized to the network's size (bicubic, antialiased), not cropped."""
        images = images.to(self.mean.device, torch.float32)
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bicubic", align_corners=False, antialias=True)
        return F.normalize(self.clip.encode_image((images.clamp(0, 1) - self.mean) / self.std).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """N texts -> [N, E]; each different one is read once."""
        different = list(dict.fromkeys(texts))
        found = self.clip.encode_text(self.tokenize(different).to(self.mean.device)).float()
        return F.normalize(found, dim=-1)[[different.index(text) for text in texts]]
