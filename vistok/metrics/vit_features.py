"""Features of DINOv2 and of CLIP, which see more than Inception's thousand classes (arXiv:2306.04675, arXiv:2401.09603)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import CheckpointError
from vistok.files import file_sha256
from vistok.hub import read_state
from vistok.metrics.extractor import FeatureExtractor
from vistok.models.base import state_hash

_DINO = "vit_large_patch14_dinov2.lvd142m"
_DINO_SIDE = 224
_CLIP = ("ViT-L-14-336", "openai")


class DinoFeatures(FeatureExtractor):
    """DINOv2 ViT-L/14 of timm, the class token; images at 224 pixels (bicubic, antialiased).

    Args:
        weights: a file with timm's names; None asks timm, which asks its cache and the network.
    """

    name, metric, dims, package = "dinov2", "fd_dinov2", 1024, "timm"

    def __init__(self, weights: Path | None = None, *, model: str = _DINO) -> None:
        nn.Module.__init__(self)
        import timm

        try:
            self.network = timm.create_model(model, pretrained=weights is None, num_classes=0, img_size=_DINO_SIDE)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"the weights of {model} cannot be had ({error}); name a file (weights=)") from error
        if weights is not None:
            _load(self.network, weights)
        self.dims = self.network.num_features
        self.weight_hash = state_hash(self.network.state_dict()) if weights is None else file_sha256(weights)[:16]
        data = self.network.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(data[name]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        x = F.interpolate(images, size=(_DINO_SIDE, _DINO_SIDE), mode="bicubic", align_corners=False, antialias=True)
        return {"pooled": self.network.forward_features((x.clamp(0, 1) - self.mean) / self.std)[:, 0]}


class ClipFeatures(FeatureExtractor):
    """Image embeddings of CLIP ViT-L/14-336 of OpenAI, of length 1; CMMD's.

    Args:
        weights: a file with open_clip's names; None asks open_clip.
    """

    name, metric, dims, package = "clip", "fd_clip", 768, "open-clip-torch"

    def __init__(
        self, weights: Path | None = None, *, architecture: str = _CLIP[0], pretrained: str = _CLIP[1]
    ) -> None:
        nn.Module.__init__(self)
        from vistok.models.clip import ClipImages

        self.network = ClipImages(architecture, pretrained if weights is None else "")
        if weights is not None:
            _load(self.network.clip, weights)
        self.dims = self.network.dim
        self.weight_hash = state_hash(self.network.clip.state_dict()) if weights is None else file_sha256(weights)[:16]
        self.train(False)

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {"pooled": self.network.images(images)}


def _load(network: nn.Module, weights: Path) -> None:
    try:
        network.load_state_dict(read_state(weights))
    except RuntimeError as error:
        raise CheckpointError(f"{weights} holds other weights: {str(error)[:300]}") from error
