"""A perceptual distance of EfficientNet-lite0 features: stands in for LPIPS where its weights are not to be had."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.losses.teacher import Lite0Teacher

_NORM_EPS = 1e-10


class Lite0Distance(nn.Module):
    """LPIPS's form on lite0's features at stride 16, without learned weights: not comparable with LPIPS.

    Raises:
        MissingExtraError: the package with the weights is not installed.
    """

    name = "lite0_distance"

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0Teacher()

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair, 0 (equal) to 4: [B, 3, H, W] in [0, 1], and as many or one for all -> [B]."""
        a, b = (_unit(self.network(image)) for image in (x, y))
        return (a - b).square().sum(dim=-1).mean(dim=(1, 2))


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=-1, keepdim=True).sqrt() + _NORM_EPS)
