"""AdamW with the decay rule of the configuration, and gradient clipping."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vistok.training.config import OptimizerConfig


def decays(name: str, parameter: Tensor, patterns: Iterable[str]) -> bool:
    """Whether a parameter gets weight decay: two dimensions or more, and named by no pattern."""
    return parameter.ndim >= 2 and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a module, in two groups: with weight decay and without."""
    patterns = config.no_decay
    if patterns is None:
        patterns = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if decays(name, p, patterns)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trainable if not decays(name, p, patterns)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip to a total norm (0 for no clipping) and return the norm before."""
    return nn.utils.clip_grad_norm_(list(parameters), max_norm if max_norm > 0 else float("inf"))
