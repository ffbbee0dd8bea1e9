"""Perceptual distances: LPIPS on VGG16 features, and ConvNeXt-S logits.

LPIPS: The Unreasonable Effectiveness of Deep Features (arXiv:1801.03924), in the form VQGAN's
training made common. ConvNeXt-S logits: the TiTok line's choice. Both networks are frozen, run in
fp32, and see reconstructions without clamping. torchvision brings the architectures.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import CheckpointError, ConfigError
from vistok.hub import read_state
from vistok.models.base import key_report

logger = logging.getLogger(__name__)

_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Last layer of torchvision's VGG16 features that belongs to each of the five slices (relu1_2 .. relu5_3).
_VGG_SLICES = ((0, 3), (4, 8), (9, 15), (16, 22), (23, 29))
_VGG_CHANNELS = (64, 128, 256, 512, 512)
_NORM_EPS = 1e-10
_CONVNEXT_SIZE = 224
_VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_CONVNEXT_URL = "https://download.pytorch.org/models/convnext_small-0c510722.pth"


class _FrozenNetwork(nn.Module):
    """A network that is never trained and always in evaluation mode."""

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> _FrozenNetwork:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)


class LPIPS(_FrozenNetwork):
    """LPIPS with VGG16, lower is more alike, 0 for equal images.

    Weights are random until loaded; ``LPIPS.pretrained()`` has the published ones.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        layers = list(make_layers(cfgs["D"]))  # VGG16 without its classifier, which is nine tenths of it
        self.slices = nn.ModuleList(
            nn.Sequential(OrderedDict((str(i), layers[i]) for i in range(first, last + 1)))
            for first, last in _VGG_SLICES
        )
        for module in self.slices.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # earlier features are still needed
        self.heads = nn.ParameterList(torch.ones(channels) / channels for channels in _VGG_CHANNELS)
        self.register_buffer("shift", torch.tensor(_LPIPS_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_LPIPS_SCALE).view(3, 1, 1))
        self._freeze()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair, [B, 3, H, W] in [0, 1] (not clamped) at their own size, and as many or one for all -> [B]."""
        with torch.autocast(x.device.type, enabled=False):
            a, b = ((image.float() * 2.0 - 1.0 - self.shift) / self.scale for image in (x, y))
            total = x.new_zeros(len(x), dtype=torch.float32)
            for layers, head in zip(self.slices, self.heads, strict=True):
                a, b = layers(a), layers(b)
                difference = (_unit(a) - _unit(b)).square()  # [B, C, h, w]
                total = total + torch.einsum("bchw,c->bhw", difference, head).mean(dim=(1, 2))
            return total

    @classmethod
    def pretrained(
        cls, *, vgg: str | Path | None = None, heads: str | Path | None = None, download: bool = True
    ) -> LPIPS:
        """The published network.

        Args:
            vgg: torchvision's ``vgg16-397923af.pth``; else torch's cache, else a download.
            heads: ``vgg.pth`` of LPIPS v0.1; else the one in the lpips package, where that is installed.
            download: whether the network may be asked for what is not on disk.
        Raises:
            CheckpointError: the weights are not to be had; the message says where to put them.
        """
        heads = _lpips_heads(heads)
        linear = read_state(heads)
        vgg = _find_weights(vgg, _VGG_URL, download, "LPIPS (VGG16)")
        features = read_state(vgg)
        model = cls()
        for layers in model.slices:
            own = layers.state_dict().keys()
            state = {key: features[f"features.{key}"] for key in own if f"features.{key}" in features}
            _load_strictly(layers, state, vgg, "LPIPS (VGG16)")
        state = {key: value.flatten() for key, value in linear.items()}
        state = {str(i): state[f"lin{i}.model.1.weight"] for i in range(5) if f"lin{i}.model.1.weight" in state}
        _load_strictly(model.heads, state, heads, "LPIPS (linear heads)")
        return model


class ConvNextLogits(_FrozenNetwork):
    """Mean squared distance of ConvNeXt-S's 1,000 ImageNet logits, at 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import convnext_small

        self.network = convnext_small(weights=None)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1))
        self._freeze()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair: two [B, 3, H, W] in [0, 1] (not clamped) -> [B]."""
        with torch.autocast(x.device.type, enabled=False):
            a, b = (self.network(self._prepare(image.float())) for image in (x, y))
            return (a - b).square().mean(dim=1)

    def _prepare(self, images: Tensor) -> Tensor:
        size = (_CONVNEXT_SIZE, _CONVNEXT_SIZE)
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return (resized - self.mean) / self.std

    @classmethod
    def pretrained(cls, *, weights: str | Path | None = None, download: bool = True) -> ConvNextLogits:
        """torchvision's IMAGENET1K_V1 weights, from ``weights``, torch's cache or a download."""
        path = _find_weights(weights, _CONVNEXT_URL, download, "ConvNeXt-S")
        state = read_state(path)
        model = cls()
        _load_strictly(model.network, state, path, "ConvNeXt-S")
        return model


class PerceptualLoss(nn.Module):
    """A weighted mean of perceptual distances, named as in the published configurations.

    Args:
        spec: ``lpips``, ``convnext_s``, or ``lpips-convnext_s-A-B`` for (A*lpips + B*convnext) / (A + B).
        pretrained: load the published weights; False leaves them random (tests, dry runs).
    """

    def __init__(self, spec: str, *, pretrained: bool = True) -> None:
        super().__init__()
        self.weights = parse_perceptual(spec)
        makers = {"lpips": LPIPS, "convnext_s": ConvNextLogits}
        self.networks = nn.ModuleDict(
            {name: makers[name].pretrained() if pretrained else makers[name]() for name in self.weights}
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[B, 3, H, W] twice -> a scalar, the mean over the batch."""
        terms = (weight * self.networks[name](x, y).mean() for name, weight in self.weights.items())
        return torch.stack(list(terms)).sum() / sum(self.weights.values())


def parse_perceptual(spec: str) -> dict[str, float]:
    """The weight of each network that a perceptual loss's name stands for; see ``PerceptualLoss``.

    Raises:
        ConfigError: it is no such name.
    """
    if spec in ("lpips", "convnext_s"):
        return {spec: 1.0}
    parts = spec.split("-")
    try:
        if parts[:2] == ["lpips", "convnext_s"] and len(parts) == 4:
            weights = {"lpips": float(parts[2]), "convnext_s": float(parts[3])}
            if 0.0 < sum(weights.values()) < math.inf:
                return weights
    except ValueError:
        pass
    raise ConfigError(
        f"the perceptual loss is lpips, convnext_s, or lpips-convnext_s-A-B as in lpips-convnext_s-1.0-0.1; got {spec!r}"
    )


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _NORM_EPS)


def _find_weights(path: str | Path | None, url: str, download: bool, what: str) -> Path:
    """An explicit file, else torch's cache, else a download."""
    if path is not None:
        if not Path(path).is_file():
            raise CheckpointError(f"{what}: there is no weights file {path}")
        return Path(path)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if cached.is_file():
        return cached
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if download and not offline:
        try:
            logger.info("downloading the weights of %s", what)
            cached.parent.mkdir(parents=True, exist_ok=True)
            start_of_hash = cached.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=start_of_hash, progress=False)
            return cached
        except (OSError, RuntimeError) as error:  # the latter: another hash
            raise CheckpointError(f"{what}: {url} cannot be fetched ({error}); put the file at {cached}") from error
    raise CheckpointError(f"{what}: the weights are not on this machine; put {url} at {cached}")


def _lpips_heads(path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    from importlib.util import find_spec

    package = find_spec("lpips")
    if package is None or package.origin is None:
        raise CheckpointError(
            "LPIPS's linear heads come with the lpips package: pip install 'vistok[eval]', or give heads=FILE"
        )
    return Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"


def _load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    report = key_report(module.state_dict(), state)
    if report:
        raise CheckpointError(f"{what}: {path} holds other weights:\n{report}")
    module.load_state_dict(state)
