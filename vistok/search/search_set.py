"""Searches for many conditions: several models, methods and budgets, resumable, the same on any number of processes.

The work is cut into pieces: some conditions of one cell (a model, a method and a budget). A piece is a file of results, written when
it is whole, so that a killed run goes on with the pieces that are missing; processes take the pieces in turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from vistok.config import to_dict
from vistok.data.transforms import to_uint8
from vistok.errors import VistokError
from vistok.files import claim_settings, whole_file
from vistok.generate.base import Generator
from vistok.generate.sample_set import SamplePlan, condition_record
from vistok.models.base import Tokenizer
from vistok.search.method import SearchMethod
from vistok.search.prior import token_data
from vistok.search.run import search
from vistok.search.verifiers import Verifier

if TYPE_CHECKING:
    from accelerate import Accelerator

SETTINGS_FILE, IMAGE_FOLDER, PIECE_FOLDER = "settings.json", "images", "pieces"


@dataclass(frozen=True)
class SearchModels:
    """What draws and decodes candidates, and judges them.

    Attributes:
        generator: or ``"uniform"``.
        tokenizer: on the same device.
        verifier: chooses the winners.
        options: of ``search``, as ``preview`` or sampling differences.
        judge: a second opinion on the winners, which no search has seen; None for none.
    """

    generator: Generator | str
    tokenizer: Tokenizer
    verifier: Verifier
    options: Mapping[str, Any] = field(default_factory=dict)
    judge: Verifier | None = None


@dataclass(frozen=True)
class SearchCell:
    """One point of a curve: a model by its name, a method, and how many candidates it may score for an image."""

    model: str
    method: SearchMethod
    budget: int | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.method.name}-{self.budget or 'own'}"


def run_searches(
    models: Mapping[str, SearchModels],
    cells: Sequence[SearchCell],
    plan: SamplePlan,
    folder: str | Path,
    *,
    chunk_size: int = 4,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Search for every image of the plan in every cell, and write winners and results into a folder.

    Args:
        models: by name.
        cells: what is searched with; their names differ.
        plan: conditions and seeds; an image's seed is the same in all cells, so that they are compared on the same draws.
        folder: is made where it is missing; one that holds other searches is refused.
        chunk_size: images of a piece, which are searched for at once.
        accelerator: shares the pieces between processes.
        progress: show a bar.
    Returns:
        the settings, and ``cells``: mean score with its standard error, and mean cost an image, of each.
    Raises:
        VistokError: models that do not fit each other, cells of one name, a folder with other searches.
    """
    names = [cell.name for cell in cells]
    if not cells or len(set(names)) < len(names):
        raise VistokError(f"the cells of a set of searches differ in model, method or budget; got {', '.join(names)}")
    if chunk_size < 1:
        raise VistokError(f"chunk_size is 1 or more images, got {chunk_size}")
    folder = Path(folder)
    settings = _settings(models, cells, plan, chunk_size)
    main = accelerator is None or accelerator.is_main_process
    if main:
        claim_settings(folder / SETTINGS_FILE, settings, holds="other searches")
    _wait(accelerator)
    share = slice(0, None) if accelerator is None else slice(accelerator.process_index, None, accelerator.num_processes)
    pieces = [(cell, start) for start in range(0, plan.num, chunk_size) for cell in cells][share]
    for cell, start in tqdm(pieces, unit="piece", disable=not (progress and main)):
        indices = range(start, min(start + chunk_size, plan.num))
        path = _piece_path(folder, cell, start)
        if not path.exists():
            found = _search(models[cell.model], cell, plan, indices, folder)
            with whole_file(path) as file:
                file.write((json.dumps(found, indent=1) + "\n").encode())
    _wait(accelerator)
    return settings | {"cells": [_summary(folder, cell, plan, chunk_size) for cell in cells]}


def image_path(folder: str | Path, cell: str, index: int) -> Path:
    """Where the winner of an image lies."""
    return Path(folder) / IMAGE_FOLDER / cell / f"{index:06d}.png"


def read_results(folder: str | Path, cell: SearchCell, num: int, chunk_size: int) -> list[dict[str, Any]]:
    """The results of a cell, an image an entry; every piece must be there."""
    pieces = [_piece_path(Path(folder), cell, start) for start in range(0, num, chunk_size)]
    return [entry for piece in pieces for entry in json.loads(piece.read_text(encoding="utf-8"))["images"]]


def _search(models: SearchModels, cell: SearchCell, plan: SamplePlan, indices: range, folder: Path) -> dict[str, Any]:
    """One piece: the images' scores and tokens, and what they cost together."""
    conditions = [plan.condition(index) for index in indices]
    result = search(
        models.generator,
        models.tokenizer,
        conditions,
        method=cell.method,
        verifier=models.verifier,
        budget=cell.budget,
        seeds=[plan.seed_of(index) for index in indices],
        **models.options,
    )
    for index, pixels in zip(indices, to_uint8(result.images).permute(0, 2, 3, 1).numpy(), strict=True):
        with whole_file(image_path(folder, cell.name, index)) as file:
            Image.fromarray(pixels).save(file, format="PNG")
    scores = {"score": result.scores.tolist()}
    if models.judge is not None:
        scores["judge"] = (
            torch.as_tensor(models.judge(result.images, conditions, tokens=result.tokens)).double().cpu().tolist()
        )
    entries = [
        {
            "index": index,
            "condition": condition_record(condition),
            "seed": plan.seed_of(index),
            **{name: values[row] for name, values in scores.items()},
            "tokens": token_data(result.tokens)[row].tolist(),
        }
        for row, (index, condition) in enumerate(zip(indices, conditions, strict=True))
    ]
    return {"images": entries, "cost": asdict(result.cost)}


def _summary(folder: Path, cell: SearchCell, plan: SamplePlan, chunk_size: int) -> dict[str, Any]:
    """A cell's means over all images."""
    pieces = [
        json.loads(_piece_path(folder, cell, start).read_text(encoding="utf-8"))
        for start in range(0, plan.num, chunk_size)
    ]
    entries = [entry for piece in pieces for entry in piece["images"]]
    cost = {
        name: sum(piece["cost"][name] for piece in pieces) / plan.num
        for name in ("token_forwards", "decoder_passes", "decoder_forwards", "verifier_calls", "seconds")
    }
    out = {"model": cell.model, "method": cell.method.name, "budget": cell.budget, "name": cell.name}
    for name in ("score", "judge"):
        values = [entry[name] for entry in entries if name in entry]
        if values:
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            out |= {name: fmean(values), f"{name}_error": error}
    return out | {"images": len(entries), "cost": cost}


def _settings(
    models: Mapping[str, SearchModels], cells: Sequence[SearchCell], plan: SamplePlan, chunk_size: int
) -> dict[str, Any]:
    """All that the results depend on."""

    def describe(model: Any) -> Any:
        if isinstance(model, str):
            return model
        return {"name": model.name, "family": model.family, "weight_hash": model.weight_hash()}

    content = {
        "kind": "searches",
        "models": {
            name: {
                "generator": describe(part.generator),
                "tokenizer": describe(part.tokenizer),
                "verifier": part.verifier.name,
                "verifier_settings": part.verifier.settings(),
                "judge": None if part.judge is None else part.judge.name,
                "judge_settings": {} if part.judge is None else part.judge.settings(),
                "options": {
                    key: value if isinstance(value, (int, float, str, dict, type(None))) else repr(value)
                    for key, value in part.options.items()
                },
            }
            for name, part in models.items()
        },
        "searches": [
            {"name": cell.name, "method": cell.method.name, **to_dict(cell.method), "budget": cell.budget}
            for cell in cells
        ],
        "num": plan.num,
        "seed": plan.seed,
        "conditions": [condition_record(value) for value in plan.conditions],
        "chunk_size": chunk_size,
    }
    return json.loads(json.dumps(content))


def _piece_path(folder: Path, cell: SearchCell, start: int) -> Path:
    return folder / PIECE_FOLDER / cell.name / f"{start:06d}.json"


def _wait(accelerator: Accelerator | None) -> None:
    if accelerator is not None:
        accelerator.wait_for_everyone()
