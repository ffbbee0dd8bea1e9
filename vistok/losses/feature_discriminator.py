"""A discriminator of small heads on the features of a frozen vision network.

After the discriminator of StyleGAN-T (arXiv:2301.09515) with a DINO transformer, which GigaTok's
``dino_disc`` variant trains with; what its heads are in detail is not verified against the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vistok.losses.lite0 import find_lite0, load_lite0, prepare_lite0
from vistok.losses.teacher import TimmTeacher

_TAPS = (2, 5, 8, 11)  # blocks of a transformer of twelve
_LITE0_TAPS = (2, 4, 6)  # stages of stride 8, 16 and 32
_KERNEL = 9
_SLOPE = 0.2
_SIZE = 224


class _FeatureHead(nn.Module):
    """Features [B, C, N] of N places in a row to logits: 1, 9 (residual), 1 wide, with batch norm between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 1)
        self.norm1 = nn.BatchNorm1d(channels)
        self.second = _conv(channels, channels, _KERNEL)
        self.norm2 = nn.BatchNorm1d(channels)
        self.to_logits = _conv(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N] -> [B, N]."""
        x = F.leaky_relu(self.norm1(self.first(x)), _SLOPE)
        x = (x + F.leaky_relu(self.norm2(self.second(x)), _SLOPE)) / 2**0.5
        return self.to_logits(x)[:, 0]


class FeatureDiscriminator(nn.Module):
    """Images to logits, high for real ones, of heads on several layers of a frozen network.

    Args:
        name: ``lite0`` (an offline stand-in), or a vision transformer of timm, as ``vit_small_patch16_224.dino``.
        pretrained: False leaves the network random (tests, dry runs).
    """

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        super().__init__()
        self.name = name
        if name == "lite0":
            self.network: nn.Module = load_lite0(find_lite0() if pretrained else None)
            self.taps: Sequence[int] = _LITE0_TAPS
        else:
            teacher = TimmTeacher(name, pretrained=pretrained, image_size=_SIZE)
            self.network = teacher.network
            depth = len(self.network.blocks)
            self.taps = sorted({min(tap * depth // 12, depth - 1) for tap in _TAPS})
            self.register_buffer("mean", teacher.mean, persistent=False)
            self.register_buffer("std", teacher.std, persistent=False)
        with torch.no_grad():
            self.network.requires_grad_(False).eval()
            widths = [part.shape[1] for part in self._features(torch.zeros(1, 3, _SIZE, _SIZE))]
        self.heads = nn.ModuleList(_FeatureHead(width) for width in widths)

    def forward(self, images: Tensor, *, parts: int = 1) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> logits [B, N] of all heads' places.

        Args:
            images: resized to the network's size.
            parts: equal parts of the batch that are normalised apart.
        """
        rows = []
        for part in images.chunk(parts):
            features = self._features(part)
            rows.append(torch.cat([head(x) for head, x in zip(self.heads, features, strict=True)], dim=1))
        return torch.cat(rows)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Each tapped layer's [B, C, N]; gradients pass to the images."""
        if self.name == "lite0":
            x, found = self.network.bn1(self.network.conv_stem(prepare_lite0(images))), []
            for index, stage in enumerate(self.network.blocks):
                x = stage(x)
                if index in self.taps:
                    found.append(x.flatten(2))
            return found
        size = (_SIZE, _SIZE)
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        layers = self.network.forward_intermediates(
            (resized - self.mean) / self.std, indices=list(self.taps), output_fmt="NLC", intermediates_only=True
        )
        return [layer.transpose(1, 2) for layer in layers]

    def requires_grad_(self, requires_grad: bool = True) -> FeatureDiscriminator:
        """Freeze or train the heads; the network stays frozen."""
        self.heads.requires_grad_(requires_grad)
        return self

    def train(self, mode: bool = True) -> FeatureDiscriminator:
        """Set training mode of the heads; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    return spectral_norm(nn.Conv1d(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode="circular"))
