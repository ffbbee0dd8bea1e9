"""What every network whose features are compared has in common."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.files import file_sha256


class FeatureExtractor(nn.Module):
    """A frozen network from images to feature vectors.

    Attributes:
        name: what it is created by.
        metric: what a Fréchet distance of its features is called.
        dims: length of a vector.
        layers: what ``every`` gives besides ``pooled``.
        eight_bit: whether the network that is to be matched reads images of 8 bits, to which others are rounded.
        weight_hash: 16 hex digits of the SHA-256 of its weights file.
    """

    name: str
    metric: str
    dims: int
    package: str
    layers: tuple[str, ...] = ()
    eight_bit: bool = True

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.weight_hash = file_sha256(weights)[:16]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> float32 [B, dims]."""
        return self.every(images, ())["pooled"]

    @torch.no_grad()
    def every(self, images: Tensor, layers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """``pooled`` [B, dims], and others by name, float32.

        Args:
            images: [B, 3, H, W] in [0, 1].
            layers: which of ``self.layers`` besides; None takes all.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise VistokError(f"{self.name} takes float images [B, 3, H, W], got {images.dtype} {list(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            found = self._features(images.float(), self.layers if layers is None else layers)
        return {name: values.float() for name, values in found.items()}

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)
