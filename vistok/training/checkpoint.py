"""Checkpoints that survive a kill at any moment: written aside, made whole, then renamed.

A checkpoint is a folder ``step_00001000`` with ``tensors.safetensors`` (modules, averages,
optimizers), ``state.json`` (everything else) and ``manifest.json``, which is written last and
names the size and CRC of the others. A folder without a manifest that holds is torn, and skipped.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vistok.errors import CheckpointError

logger = logging.getLogger(__name__)

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_CHUNK = 1 << 22


def save_checkpoint(root: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Write ``root/step_...`` atomically, then remove all but the newest ``keep``."""
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{step:08d}"
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # Contiguous copies of their own: safetensors refuses tensors that share memory.
    save_file({key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}, temporary / _TENSORS)
    (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
    manifest = {name: _fingerprint(temporary / name) for name in (_TENSORS, _STATE)}
    (temporary / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for name in (_TENSORS, _STATE, _MANIFEST):
        _sync(temporary / name)
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    _sync(root)
    for old in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for stale in root.glob(".step_*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    return final


def newest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint below ``root``; torn ones are skipped with a warning."""
    for folder in sorted(root.glob("step_*"), reverse=True):
        reason = _damage(folder)
        if not reason:
            return folder
        logger.warning("the checkpoint %s is skipped: %s", folder, reason)
    return None


def load_checkpoint(folder: Path, *, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a complete checkpoint.

    Raises:
        CheckpointError: it is torn.
    """
    reason = _damage(folder)
    if reason:
        raise CheckpointError(f"the checkpoint {folder} cannot be used: {reason}")
    return load_file(folder / _TENSORS, device=str(device)), json.loads((folder / _STATE).read_text(encoding="utf-8"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and the rest as plain data."""
    state = optimizer.state_dict()
    tensors = {
        f"{prefix}.{index}.{key}": value for index, values in state["state"].items() for key, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def load_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor], rest: dict[str, Any]
) -> None:
    """The way back of ``optimizer_tensors``."""
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, _, key = name.removeprefix(prefix + ".").partition(".")
            values.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": values, "param_groups": rest["param_groups"]})


def _damage(folder: Path) -> str:
    """Why a checkpoint cannot be used; "" if it is whole."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, wanted in manifest.items():
            if _fingerprint(folder / name) != wanted:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"it is incomplete ({error})"
    return "" if {_TENSORS, _STATE} <= manifest.keys() else "its manifest is incomplete"


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
