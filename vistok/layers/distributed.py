"""Collectives that are the identity when one process runs alone, so that callers need no ``if``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the group; 1 where none was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` of all processes along its first axis, in rank order; shapes must agree. No gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def all_mean(x: Tensor) -> Tensor:
    """The mean of ``x`` over all processes. No gradient."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / world_size()
