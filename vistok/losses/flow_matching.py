"""The loss of a velocity (flow matching, arXiv:2210.02747)."""

from __future__ import annotations

import torch
from torch import Tensor


def flow_matching_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between predicted and true velocities [B, ...], over all elements, in fp32."""
    with torch.autocast(velocity.device.type, enabled=False):
        return (velocity.float() - target.float()).square().mean()
