"""Reading golden cases, and comparing outputs with recordings; one module a family runs them."""

from __future__ import annotations

import ast
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from vistok.generate.masked import gumbel


@dataclass
class Result:
    """One output compared; ``passed`` is None where it cannot be run."""

    output: str
    max_abs_error: float | None
    max_rel_error: float | None
    passed: bool | None
    note: str = ""
    tolerance: dict[str, float] | None = None


class GoldenCase:
    """A folder with ``case.json`` and, where it has recorded tensors, ``io.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.family: str = self.data["family"]
        self.tolerance: dict[str, float] = self.data["tolerance"]
        self.steps: list[dict[str, Any]] = self.data.get("steps", [])
        self.config: dict[str, Any] = self.data.get("config") or {}
        self.shapes = {name: tuple(shape) for name, shape in self.data.get("state", {}).items()}
        self.name = _case_name(folder, self.family)
        io_path = folder / "io.safetensors"
        self._io = load_file(io_path) if io_path.exists() else {}

    @property
    def outputs(self) -> list[str]:
        """Names of all recorded outputs; "layout" where only names and shapes are recorded."""
        outputs = [output for step in self.steps for output in step["outputs"]]
        return [output if isinstance(output, str) else output["name"] for output in outputs] or ["layout"]

    def tensor(self, name: str) -> Tensor:
        """A stored tensor by its name in the file, as ``in/codes``."""
        return torch.from_numpy(self._io[name].copy())

    def input(self, step: dict[str, Any], name: str) -> Tensor:
        """An input of a step: stored, or made by the image rule."""
        spec = next(item for item in step["inputs"] if item["name"] == name)
        if "fill_image" in spec:
            return torch.from_numpy(fill_image(**spec["fill_image"]))
        return self.tensor(spec["tensor"])

    def has_input(self, step: dict[str, Any], name: str) -> bool:
        """Whether a step has an input that is stored or made by rule (not an earlier output)."""
        return any(item["name"] == name and ("fill_image" in item or "tensor" in item) for item in step["inputs"])

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The checkpoint (or its part under ``prefix``, which is taken off), filled by the rule."""
        out = {}
        for name, shape in self.shapes.items():
            if not name.startswith(prefix):
                continue
            stored = self._io.get(f"state/{name}")
            value = stored if stored is not None else self._filled(name, shape)
            out[name.removeprefix(prefix)] = torch.from_numpy(np.array(value))
        return out

    def _filled(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = fill_tensor(name, shape, self.data["seed"])
        for pattern, factor in self.data.get("scale") or []:
            if re.search(pattern, name):
                value = value * np.float32(factor)
        return value

    def compare_all(self, step: dict[str, Any], computed: dict[str, Tensor]) -> Iterator[Result]:
        """``compare`` of all outputs of a step that are computed; others stay unsupported."""
        for output in step["outputs"]:
            if output["name"] in computed:
                yield self.compare(step, output["name"], computed[output["name"]])

    def compare(
        self,
        step: dict[str, Any],
        name: str,
        ours: Tensor | float,
        *,
        rtol: float | None = None,
        atol: float | Tensor | None = None,
        margin: float | None = None,
    ) -> Result:
        """Compare our value with the recorded output ``name`` of a step.

        Args:
            step: the step that recorded it.
            name: of the output.
            ours: our full output; the recording's index is applied here.
            rtol, atol: other tolerances than the case's, where its own are blind; ``atol`` may be one for each value of ``ours``.
            margin: for ids, the smallest gap between best and second-best distance: float error
                explains a difference only where it is smaller than that error could be.
        """
        spec = next(item for item in step["outputs"] if item["name"] == name)
        theirs = self.tensor(spec["tensor"])
        ours = torch.as_tensor(ours).detach()
        if spec.get("index"):
            ours = _apply_index(ours, spec["index"])
            atol = _apply_index(atol, spec["index"]) if isinstance(atol, Tensor) else atol
        if ours.numel() == theirs.numel() and (ours.ndim == 0 or theirs.shape == (1,)):
            ours = ours.reshape(theirs.shape)
        if ours.shape != theirs.shape:
            return Result(name, None, None, False, f"shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
        if not theirs.is_floating_point():
            wrong = int((ours != theirs).sum())
            note = f"{wrong} of {theirs.numel()} ids differ (margin {margin})" if wrong else ""
            return Result(name, float(wrong), float(wrong > 0), wrong == 0, note, {"rtol": 0.0, "atol": 0.0})
        rtol = self.tolerance["rtol"] if rtol is None else rtol
        atol = self.tolerance["atol"] if atol is None else atol
        difference = (ours.double() - theirs.double()).abs()
        bound = atol + rtol * theirs.double().abs()
        passed = bool((difference <= bound).all())  # False for NaN
        relative = (difference / theirs.double().abs().clamp_min(1e-12)).max()
        atol = float(atol.max() if isinstance(atol, Tensor) else atol)
        return Result(
            name, float(difference.max()), float(relative), passed, tolerance={"rtol": float(rtol), "atol": atol}
        )


class StoredNoise:
    """The recorded uniform numbers of filling in: of the ids [S, B, L, K], and of what is kept [S, B, L], where that is random."""

    def __init__(self, case: GoldenCase, step: dict[str, Any]) -> None:
        self._ids, self._kept = (
            iter(case.input(step, name) if case.has_input(step, name) else ()) for name in ("u_tok", "u_conf")
        )

    def draw(self, logits: Tensor, size: float) -> Tensor:
        """The largest with noise, as it is recorded."""
        return (logits + size * gumbel(next(self._ids))).argmax(dim=-1)

    def keep(self) -> Tensor:
        """Of the next step."""
        return gumbel(next(self._kept))


def runner_for(case: GoldenCase) -> Callable[[GoldenCase], Iterator[Result]] | None:
    """The function that runs a family's cases, or None where vistok does not have the family yet."""
    if case.family in ("titok", "onedpiece"):  # One-D-Piece is TiTok with tail drop
        from golden_cases.titok import run

        return run
    if case.family == "flextok":
        from golden_cases.flextok import run

        return run
    if case.family == "karl":
        from golden_cases.karl import run

        return run
    if case.family == "alit":
        from golden_cases.alit import run

        return run
    if case.family == "flextok_ar":
        from golden_cases.flexar import run

        return run
    if case.family == "gigatok":
        from golden_cases.gigatok import run

        return run
    if case.family == "search":
        from golden_cases.search import run

        return run
    return None


def _case_name(folder: Path, family: str) -> str:
    parts = folder.resolve().parts
    return "/".join(parts[parts.index(family) :]) if family in parts else f"{family}/{folder.name}"


def _apply_index(tensor: Tensor, text: str) -> Tensor:
    """Apply a recorded numpy index such as ``[:, ::4]``; slices and whole numbers only."""
    node = ast.parse(f"x{text}", mode="eval").body
    if not isinstance(node, ast.Subscript):
        raise ValueError(f"not an index: {text}")
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    index = []
    for part in parts:
        if isinstance(part, ast.Slice):
            bounds = (part.lower, part.upper, part.step)
            index.append(slice(*(None if bound is None else ast.literal_eval(bound) for bound in bounds)))
        else:
            index.append(Ellipsis if ast.unparse(part) == "..." else ast.literal_eval(part))
    return tensor[tuple(index)]


def fill_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The rule that fills a named tensor: N(0, 1 / fan_in), or near 0 for biases and near 1 for gains."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return (values / math.sqrt(max(1, math.prod(shape[1:])))).astype(np.float32)
    if name.endswith("bias"):
        return (0.02 * values).astype(np.float32)
    return np.asarray(1.0 + 0.02 * values, dtype=np.float32)


def fill_image(shape: list[int], seed: int) -> np.ndarray:
    """The rule that makes a test image in [0, 1]: six low waves a channel plus a little noise."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"image:{seed}".encode())))
    axes = np.meshgrid(*[np.linspace(0.0, 1.0, size) for size in shape[2:]], indexing="ij")
    out = np.zeros(tuple(shape), dtype=np.float64)
    for row in range(shape[0]):
        for channel in range(shape[1]):
            for _ in range(6):
                frequencies = rng.uniform(0.5, 6.0, size=len(axes))
                phase = rng.uniform(0.0, 2.0 * math.pi)
                wave = 2.0 * math.pi * sum(f * axis for f, axis in zip(frequencies, axes, strict=True))
                out[row, channel] += rng.uniform(0.2, 1.0) * np.sin(wave + phase)
    out += 0.1 * rng.standard_normal(out.shape)
    low, high = out.min(), out.max()
    return ((out - low) / (high - low)).astype(np.float32)
