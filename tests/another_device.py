"""A device that is not the CPU, for machines without one: values lie in memory, but may not meet the CPU's without a copy.

A pytest plugin for a process of its own (``-p another_device``), since torch takes one such device a process. Tensors
made there, or moved there by ``.to(DEVICE)``, hold a tensor of the CPU that does the work; an operator that is given
tensors of both devices is refused, as CUDA would refuse it. What code under ``tests/`` itself mixes is let pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_ops = torch.ops.aten
_INDEXING = {_ops.index.Tensor, _ops.index_put.default, _ops.index_put_.default, _ops._index_put_impl_.default}
_COPIES = {_ops.copy_.default, _ops._to_copy.default}
_TO_PYTHON = {_ops._local_scalar_dense.default, _ops.equal.default}
_TESTS = str(Path(__file__).resolve().parent)
_LIBRARY = str(Path(__file__).resolve().parents[1] / "vistok")


class _Backend(_DummyBackendModule):
    """What torch asks a device's module for, beside what the dummy answers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


_setup_privateuseone_for_python_backend("elsewhere", _Backend())
DEVICE = torch.device("elsewhere:0")
PartialState.default_device = property(lambda self: DEVICE)  # training runs there
# Tensors of other classes are no plain data of a parameter: ``Module.to`` has to make new ones.
torch.__future__.set_overwrite_module_params_on_conversion(True)
_without_autocast = torch.library.Library("_", "IMPL")
_without_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


class _PlacedGenerator(torch.Generator):
    """The CPU's, under the name of a device."""

    def __new__(cls, device: torch.device | str = "cpu") -> _PlacedGenerator:
        generator = super().__new__(cls, device="cpu")
        generator.place = torch.device(device)
        return generator

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    device = property(lambda self: self.place)


torch.Generator = _PlacedGenerator


def _made_here_first(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Tensors of lists are made by no operator that could be seen, so they are copied."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


torch.tensor, torch.as_tensor = _made_here_first(torch.tensor), _made_here_first(torch.as_tensor)


class MixedDevicesError(RuntimeError):
    """An operator was given tensors of both devices."""


class ElsewhereTensor(Tensor):
    """A tensor of ``DEVICE``; ``held`` is the one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> ElsewhereTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    __torch_dispatch__ = classmethod(lambda cls, func, types, args=(), kwargs=None: _run(func, args, kwargs or {}))

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of another device has no NumPy array; copy it with .cpu() first")

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.device)


class _EverywhereMode(TorchDispatchMode):
    """Sees factories too, which are given no tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Every test runs where the device can be used."""
    with _EverywhereMode():
        return (yield)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operator on what its arguments hold; its results are of their device, or of the one that it names."""
    leaves = tree_leaves((args, dict(kwargs)))
    there = [leaf for leaf in leaves if isinstance(leaf, ElsewhereTensor)]
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, ElsewhereTensor)]
    if _mixes(func, args, there, here) and not _asked_by_a_test():
        shapes = [(list(leaf.shape), str(leaf.device)) for leaf in leaves if isinstance(leaf, Tensor)]
        raise MixedDevicesError(f"{func} was given tensors of both devices: {shapes}")
    named = kwargs.get("device")
    to_there = bool(there) if named is None else torch.device(named).type == DEVICE.type
    if to_there and any(isinstance(leaf, torch.Generator) and leaf.device.type == "cpu" for leaf in leaves):
        raise MixedDevicesError(f"{func} draws on another device with a generator of the CPU")
    own = {id(leaf.held): leaf for leaf in there}
    held_args, held_kwargs = tree_map(
        lambda leaf: leaf.held if isinstance(leaf, ElsewhereTensor) else leaf, (args, dict(kwargs))
    )
    if named is not None:
        held_kwargs["device"] = "cpu"
    out = func(*held_args, **held_kwargs)
    if func is _ops.copy_.default:
        return args[0]
    if not to_there or func in _TO_PYTHON:
        return out
    # What was changed in place stays the tensor that it was.
    return tree_map(
        lambda leaf: own[id(leaf)] if id(leaf) in own else ElsewhereTensor(leaf) if isinstance(leaf, Tensor) else leaf,
        out,
    )


def _mixes(func: Any, args: Sequence[Any], there: Sequence[Tensor], here: Sequence[Tensor]) -> bool:
    """Whether CUDA would refuse: it takes single numbers of the CPU, and indices of the CPU."""
    if func in _COPIES or not there:
        return False
    if func in _INDEXING:
        values = [leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor) and leaf.ndim]
        others = [*values, *(tree_leaves(args[1]) if not isinstance(args[0], ElsewhereTensor) else ())]
        return any(
            isinstance(leaf, ElsewhereTensor) != isinstance(args[0], ElsewhereTensor)
            for leaf in others
            if isinstance(leaf, Tensor)
        )
    return any(leaf.ndim for leaf in here)


def _asked_by_a_test() -> bool:
    """Whether the nearest frame of this repository is a test's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_LIBRARY):
            return False
        if name.startswith(_TESTS) and name != __file__:
            return True
        frame = frame.f_back
    return True
