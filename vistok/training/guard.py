"""Stops a run whose numbers are no longer numbers, and keeps what is needed to see why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vistok.errors import VistokError


class NonFiniteError(VistokError):
    """A loss or gradient is infinite or not a number; the message names it."""


def check_finite(terms: dict[str, Tensor], phase: str, step: int, batch: dict[str, Any], folder: Path) -> None:
    """Raise if a term is not finite, after saving the batch.

    Args:
        terms: scalars by name.
        phase: whose loss it is.
        step: at which it happened.
        batch: that led to it; its tensors are saved.
        folder: of the run.
    Raises:
        NonFiniteError: names the terms and the saved file.
    """
    flat = torch.stack([value.detach().float().mean() for value in terms.values()])
    if bool(torch.isfinite(flat).all()):
        return
    bad = [name for name, value in zip(terms, flat.tolist(), strict=True) if value != value or abs(value) == float("inf")]
    path = folder / f"nonfinite_step_{step:08d}.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items() if isinstance(value, Tensor)}
    save_file(tensors, path)
    raise NonFiniteError(
        f"step {step}: {', '.join(bad)} of the {phase} is not finite; the batch is saved in {path}. "
        "Look at it, lower optimizer.lr, or use mixed_precision: bf16; the run resumes from its last checkpoint"
    )
