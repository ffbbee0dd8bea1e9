"""Typed configuration: YAML files onto frozen dataclasses, strictly.

A YAML file states differences from the defaults of its dataclass. ``base: other.yaml`` names one
parent, relative to the file; its values are merged underneath. ``a.b=value`` overrides come last.
An unknown key, a wrong type and a missing field are errors that name the key. Configuration is
data: nothing in it can name code to run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vistok.errors import ConfigError, nearest

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path, overrides: Iterable[str] = ()) -> T:
    """Read a YAML file into the dataclass ``cls``.

    Args:
        cls: a dataclass; nested dataclasses, tuples, dicts, unions and Literals are understood.
        path: the YAML file; ``base:`` parents are resolved relative to the file that names them.
        overrides: ``a.b=value`` strings; each value is read as YAML.
    Raises:
        ConfigError: unreadable file, unknown key, wrong type, missing field, circular ``base``.
    """
    return from_dict(cls, apply_overrides(load_yaml(path), overrides), where=str(path))


def embedded_config(name: str) -> Path:
    """The path of a configuration that comes with vistok, as ``titok/tiny.yaml``: in a wheel, or in a clone.

    Raises:
        ConfigError: there is none of that name.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "configs", package.parent / "configs"):
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"vistok has no configuration {name}; look into configs/")


def load_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping and merge it over its ``base:`` parents."""
    path = Path(path)
    resolved = path.resolve()
    if resolved in _seen:
        raise ConfigError(f"{path}: `base:` goes in a circle: {' -> '.join(map(str, (*_seen, resolved)))}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "; changes like this one come after the file" if "=" in path.name and not path.exists() else ""
        raise ConfigError(f"cannot read the configuration {path}: {error}{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: wanted a mapping of keys to values at the top, got {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `base` takes one file name, got {base!r}")
    return merge(load_yaml(path.parent / base, (*_seen, resolved)), data)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``under``; mappings are merged key by key, anything else is replaced."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` strings; the value is read as YAML (``1e-4`` is a number here too)."""
    out = dict(data)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"the override {text!r} is not of the form key=value, as in optimizer.lr=1e-4")
        try:
            parsed: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of the override {text!r} is not valid YAML: {error}") from error
        if isinstance(parsed, dict) and value.endswith(":"):
            parsed = value  # data.train=emoji: names a source; YAML reads a key without a value
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        out = merge(out, parsed)
    return out


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "configuration") -> T:
    """Build the dataclass ``cls`` from a mapping, strictly.

    Raises:
        ConfigError: naming ``where`` and the dotted key.
    """
    return _build(cls, data, where, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain dict of a dataclass (tuples become lists), fit for YAML and JSON."""
    return _plain(dataclasses.asdict(config))


def save_yaml(config: Any, path: str | Path) -> None:
    """Write a dataclass as YAML, whole or not at all; ``load_config`` reads it back equal."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: Any, data: Any, where: str, prefix: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {prefix or 'the top'} wants keys and values, got {data!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values = {}
    for key, value in data.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if key not in fields:
            raise ConfigError(f"{where}: unknown key `{dotted}`; {nearest(str(key), fields)}")
        values[key] = _convert(_hints(cls)[key], value, where, dotted)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            dotted = f"{prefix}.{name}" if prefix else name
            raise ConfigError(f"{where}: the key `{dotted}` is missing and has no default")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {f'{prefix}: ' if prefix else ''}{error}") from error


def _convert(kind: Any, value: Any, where: str, dotted: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        problem: ConfigError | None = None
        for option in args:
            if option is type(None):
                continue
            try:
                return _convert(option, value, where, dotted)
            except ConfigError as error:
                problem = error
        raise problem or ConfigError(f"{where}: `{dotted}` does not take {value!r}")
    if origin is typing.Literal:
        if value is False and "no" in args:
            return "no"  # what YAML 1.1 makes of a bare `no`
        if value in args:
            return value
        raise ConfigError(f"{where}: `{dotted}` is one of {', '.join(map(str, args))}; got {value!r}")
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, where, dotted)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (Ellipsis not in args and len(value) != len(args)):
            raise ConfigError(
                f"{where}: `{dotted}` wants a list{'' if Ellipsis in args else f' of {len(args)}'}, got {value!r}"
            )
        items = [args[0]] * len(value) if Ellipsis in args else args
        return tuple(
            _convert(item, part, where, f"{dotted}[{i}]")
            for i, (item, part) in enumerate(zip(items, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: `{dotted}` wants keys and values, got {value!r}")
        return {
            _convert(args[0], key, where, dotted): _convert(args[1], item, where, f"{dotted}.{key}")
            for key, item in value.items()
        }
    return _scalar(kind, value, where, dotted)


def _scalar(kind: Any, value: Any, where: str, dotted: str) -> Any:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) and not _is_no_number(value):
        return value
    # YAML 1.1 reads `1e-4` as a string, and whole numbers stand for floats and the other way round.
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not _is_no_number(number):
            if kind is float:
                return number
            if number.is_integer():
                return int(number)
    raise ConfigError(f"{where}: `{dotted}` wants {getattr(kind, '__name__', kind)}, got {value!r}")


def _is_no_number(value: Any) -> bool:
    """Whether it is infinite or not a number, which YAML can write and no setting takes."""
    return isinstance(value, float) and not math.isfinite(value)
