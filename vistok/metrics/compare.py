"""Result files side by side, beside the published figures; numbers of different protocols are not put in one row unasked."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistok.errors import DataError, VistokError
from vistok.metrics.protocols import Protocol
from vistok.registry import cards

# Which measured figure a published one is beside.
_PUBLISHED = {
    "reconstruction": {"rfid": "fid", "lpips": "lpips", "is": "is"},
    "generation": {"gfid": "fid", "fid_mjhq": "fid", "is": "is"},
}
_NOT_METRICS = {
    "length",
    "num_tokens",
    "codebook_size",
    "seconds",
    "processes",
    "batch_size",
    "images",
    "unreadable",
    "image_size",
    "images_per_second",
}
_DESCRIBING = (
    "name",
    "source",
    "split",
    "reference",
    "num_images",
)  # of a protocol: says what it is for, measures nothing
_SAME = ("data", "reference")  # what should be the same, besides the protocol, for numbers to compare


def read_result(path: str | Path) -> dict[str, Any]:
    """A result of an evaluation.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the result {path}: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        raise DataError(f"{path} is no result of an evaluation: it names no protocol")
    return result


def compare_results(
    results: Mapping[str, Mapping[str, Any]], *, mixed: bool = False
) -> tuple[list[str], list[list[str]], list[str]]:
    """A table of all numbers.

    Args:
        results: by the names of their columns, as ``read_result`` gives them.
        mixed: put results of different protocols side by side all the same.
    Returns:
        Header, rows and remarks.
    Raises:
        VistokError: one result or none, or different protocols and not ``mixed``; the message says what differs.
    """
    if len(results) < 2:
        raise VistokError(f"two results or more are compared, got {len(results)}")
    remarks = protocol_differences(results)
    if remarks and not mixed:
        raise VistokError(
            f"these results are of different protocols, so their numbers do not compare: {'; '.join(remarks)}. "
            "Evaluate them alike, or say --mixed to see them side by side all the same"
        )
    for key in _SAME:
        facts = {name: _short(result.get(key)) for name, result in results.items() if result.get(key)}
        if len(set(facts.values())) > 1:
            remarks.append(f"{key} differs: " + "; ".join(f"{name}: {fact}" for name, fact in facts.items()))
    for name, result in results.items():
        deviations = [*result.get("deviations", ()), *result.get("notes", ())]
        remarks += [f"{name}: {text}" for text in deviations]
    columns = comparison_columns(results)
    keys = dict.fromkeys(key for column in columns for key in column.numbers)
    rows = [[key, *(column.text(key) for column in columns)] for key in keys]
    return ["", *(column.name for column in columns)], rows, remarks


@dataclass(frozen=True)
class Column:
    """The numbers of one result, or of one model's publication.

    Attributes:
        name: what it is called.
        numbers: by metric.
        spread: standard deviations, as far as they are known.
        published: they are the paper's.
        place: of the result, counted from 0; of published figures, of the first one that they are beside.
    """

    name: str
    numbers: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    published: bool = False
    place: int = 0

    def text(self, metric: str) -> str:
        """Number and deviation; "-" where there is none."""
        if metric not in self.numbers:
            return "-"
        spread = f" ± {self.spread[metric]:.2g}" if metric in self.spread else ""
        return f"{self.numbers[metric]:.5g}{spread}"


def comparison_columns(results: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """A column a result, and after them one of published figures for each model that has some."""
    columns = []
    published: dict[str, Column] = {}
    for place, (name, result) in enumerate(results.items()):
        spread = {key: float(value["std"]) for key, value in (result.get("confidence") or {}).items()}
        columns.append(Column(name, _numbers(result), spread, place=place))
        figures = _published(result)
        if figures:
            title = f"{result.get('model') or _generator(result)}, published"
            published.setdefault(title, Column(title, figures, published=True, place=place))
    return [*columns, *published.values()]


def protocol_differences(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was evaluated, and what the protocols and the networks that were really used, differ in; names alone do not count."""
    facts = {}
    defaults = dataclasses.asdict(Protocol(""))  # of fields that are younger than a result
    for name, result in results.items():
        fields = {key: value for key, value in (defaults | result["protocol"]).items() if key not in _DESCRIBING}
        used = result.get("features") or {}
        kind = {"kind": result.get("kind", "reconstruction")}
        facts[name] = kind | fields | {"network": used.get("name"), "network's weights": used.get("weight_hash")}
    keys = dict.fromkeys(key for fact in facts.values() for key in fact)
    out = []
    for key in keys:
        values = {name: fact.get(key) for name, fact in facts.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            out.append(f"{key} ({', '.join(f'{name}: {value}' for name, value in values.items())})")
    return out


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, and its codebook's."""
    flat = dict(result)
    codebook = {f"codebook {key}": value for key, value in (result.get("codebook") or {}).items()}
    return {
        key: float(value)
        for key, value in {**flat, **codebook}.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in _NOT_METRICS
    }


def _generator(result: Mapping[str, Any]) -> str:
    return str(((result.get("sampling") or {}).get("generator") or {}).get("name", ""))


def _published(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the model's card, under the names of what was measured."""
    card = cards().get(str(result.get("model") or _generator(result)))
    names = _PUBLISHED.get(str(result.get("kind", "reconstruction")), _PUBLISHED["reconstruction"])
    if card is None:
        return {}
    return {ours: card.metrics[theirs] for theirs, ours in names.items() if theirs in card.metrics}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {value[key]}" for key in ("spec", "listing_hash", "file_hash", "limit") if value.get(key)
        )
    return str(value)


def read_results(paths: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """``read_result`` of files, by their names; those of one name get their folders'."""
    twice = [str(path) for path, count in Counter(map(Path, paths)).items() if count > 1]
    if twice:
        raise VistokError(f"{twice[0]} is named more than once; name each result once")
    stems = [Path(path).stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else str(Path(path).with_suffix(""))
        for path, stem in zip(paths, stems, strict=True)
    ]
    return {name: read_result(path) for name, path in zip(names, paths, strict=True)}
