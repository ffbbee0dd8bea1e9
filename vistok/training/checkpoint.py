"""Checkpoints that survive a kill at any moment: written aside, made whole, then renamed.

A checkpoint is a folder ``step_00001000`` with ``tensors.safetensors`` (modules, averages,
optimizers), ``state.json`` (everything else) and ``manifest.json``, which is written last and
names the size and CRC-32 of the others. Folders whose manifest does not hold are torn, and
skipped. Names with a leading dot are work in progress: nothing reads them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vistok.errors import CheckpointError

logger = logging.getLogger(__name__)

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_CHUNK = 1 << 22


def save_checkpoint(root: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Write ``root/step_...`` atomically, then remove all but the newest ``keep`` complete ones.

    Nothing that was there is touched before the new one is complete and on the disk.

    Args:
        root: folder of the run's checkpoints; made if need be.
        step: optimizer steps done.
        tensors: by name; any device.
        state: what JSON takes.
        keep: how many stay, 1 or more.
    Returns:
        the checkpoint's folder.
    Raises:
        CheckpointError: it could not be written (a full disk); older ones are intact.
    """
    final = checkpoint_folder(root, step)
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()
        # Copies of their own: safetensors refuses tensors that share memory.
        copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(copies, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
        for name in (_TENSORS, _STATE):
            _sync(temporary / name)
        manifest = {name: _fingerprint(temporary / name) for name in (_TENSORS, _STATE)}
        (temporary / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _sync(temporary / _MANIFEST)
        _sync(temporary)
        if final.exists():  # a torn one, or else this run would have begun after it
            os.replace(final, root / f".{final.name}.old")
        os.replace(temporary, final)
        _sync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write the checkpoint {final}: {error}; older ones are intact") from error
    _prune(root, keep)
    return final


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return root / f"step_{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The way back of ``checkpoint_folder``."""
    return int(folder.name.removeprefix("step_"))


def newest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint below ``root``; torn ones are skipped with a warning that says why."""
    for folder in sorted(root.glob("step_*"), reverse=True):
        reason = damage(folder)
        if not reason:
            return folder
        logger.warning("the checkpoint %s is skipped: %s", folder, reason)
    return None


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a checkpoint that ``damage`` finds whole.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return load_file(folder / _TENSORS), json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}") from error


def damage(folder: Path, *, contents: bool = True) -> str:
    """Why a checkpoint cannot be used; "" if it is whole.

    Args:
        folder: of the checkpoint.
        contents: False compares sizes only.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name in (_TENSORS, _STATE):
            size, checksum = manifest[name]
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, and {size} were written"
            if contents and _fingerprint(folder / name)[1] != checksum:
                return f"{name} does not have the contents that were written (CRC-32)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    return ""


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state by the module's names: ``exp_avg/blocks.0.weight``."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The way back of ``optimizer_tensors``; groups and learning rates stay as they are.

    Raises:
        CheckpointError: a name that the module does not have.
    """
    names = dict(module.named_parameters())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    positions = {id(parameter): position for position, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in names or id(names[name]) not in positions:
            raise CheckpointError(f"the optimizer's state has {name!r}, which is no trained parameter of this model")
        state.setdefault(positions[id(names[name])], {})[kind] = value
    # Through state_dict, as that puts every value on the device and in the type the optimizer wants.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _prune(root: Path, keep: int) -> None:
    """Remove old and torn checkpoints; by a rename first, so that what is left is complete or invisible."""
    complete = [folder for folder in sorted(root.glob("step_*")) if not damage(folder, contents=False)]
    for folder in set(root.glob("step_*")) - set(complete[-keep:]):
        os.replace(folder, root / f".{folder.name}.old")
    _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    for pattern in (".step_*.old", ".step_*.tmp"):
        for folder in root.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(path: Path) -> list[int]:
    """Size and CRC-32."""
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
