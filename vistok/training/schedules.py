"""Values that change over training, as functions of the step alone."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vistok.training.config import ScheduleConfig


def learning_rate(step: int, kind: str, lr: float, end_lr: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimizer step ``step`` (0-based).

    Linear warm-up from 0, then a cosine to ``end_lr`` at ``total_steps`` (not clamped: beyond, it
    rises again, as in the recipes this follows), or a constant.
    """
    if step < warmup_steps:
        return lr * step / warmup_steps
    if kind == "constant":
        return lr
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end_lr + (lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_anneal(step: int, start: int, end: int) -> float:
    """1 until ``start``, then linearly down to 0 at ``end`` (the random-order ratio of RAR, arXiv:2411.00776)."""
    if step <= start:
        return 1.0
    return max(0.0, 1.0 - (step - start) / max(1, end - start))


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, *, lr: float, total_steps: int, done: int = 0
) -> LambdaLR:
    """``learning_rate`` as torch's scheduler of an optimizer; its ``last_epoch`` counts the steps taken.

    Args:
        optimizer: whose groups get the rate.
        config: the shape.
        lr: the peak.
        total_steps: where a cosine arrives at ``end_lr``.
        done: steps that were taken before, in a run that resumes.
    """

    def factor(step: int) -> float:
        return learning_rate(step, config.kind, lr, config.end_lr, config.warmup_steps, total_steps) / lr

    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr
    # LambdaLR takes one step when it is made.
    return LambdaLR(optimizer, factor, last_epoch=done - 1)
