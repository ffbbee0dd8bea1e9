"""Making, loading and converting models: by registered name, hub id, folder or file.

A vistok folder holds ``config.json`` (family, name, configuration) and ``model.safetensors``.
Published checkpoints of other layouts are recognised by their tensor names and converted on the
fly. Loading is strict, and no pickle is ever executed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vistok.config import from_dict, load_yaml, merge
from vistok.convert import recognise
from vistok.errors import CheckpointError, ConfigError, PublishedConfigError, VistokError, nearest
from vistok.models.base import CONFIG_FILE, WEIGHTS_FILE, PretrainedModel, Tokenizer, key_report
from vistok.registry import ModelCard, cards, get_card, list_models, model_class

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
_CONFIG_FILES = (CONFIG_FILE, "config.yaml")  # FlexTok's generators have the second
_WEIGHT_FILES = (WEIGHTS_FILE, _DIFFUSERS_FILE, "pytorch_model.bin")
_WRAPPERS = ("ema", "model", "state_dict")  # in the order of preference: averaged weights are what papers evaluate


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> PretrainedModel:
    """Make a registered model, in evaluation mode.

    Args:
        name: see ``list_models``.
        pretrained: False for fresh weights; True for the published ones; or a hub id, folder or file.
        device: where to put it; ``meta`` has its sizes without the memory.
        dtype: floating-point type of the weights; None keeps theirs.
        changes: differences from the card's configuration, as ``num_tokens=64``; fresh weights only.
    Raises:
        VistokError: unknown name, a family that cannot be built, a bad configuration, no weights.
    """
    card = get_card(name)
    cls = model_class(card.family)
    if pretrained is not False:
        if changes:
            raise VistokError(f"pretrained weights fix the configuration; drop {', '.join(changes)} or pretrained")
        where = name if pretrained is True else pretrained
        model = _load(where, name=name, device=device, dtype=dtype)
        if model.family != card.family:
            raise CheckpointError(f"{where} holds a {model.family}, and {name} is a {card.family}")
        if card.kind == "tokenizer":  # a generator's sizes follow the data it was trained on
            named = empty_model(cls, from_dict(cls.config_class, card.config, where=name))
            report = key_report(named.state_dict(), model.state_dict())
            if report:
                raise CheckpointError(f"{where} holds another {model.family} than {name}:\n{report}")
        model.name = name
        return model
    defaults = {"sampling": dict(card.sampling)} if card.sampling else {}
    config = from_dict(cls.config_class, merge(merge(defaults, card.config), changes), where=name)
    config = _with_class_names(config, card)
    if _is_meta(device):  # sizes without memory, also where a block ``with torch.device("meta")`` asks for them
        with torch.device("cpu"):  # buffers are computed, and some need values
            model = empty_model(cls, config)
        model = model.to(device="meta", dtype=dtype).eval()
    else:
        model = cls(config).to(device=device, dtype=dtype).eval()
    model.name = name
    return model


def from_pretrained(
    where: str | Path,
    *,
    config: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    inference_only: bool = False,
) -> PretrainedModel:
    """Load a model from a registered name, a hub id, a folder or a file, in evaluation mode.

    Published generators get the sampling defaults of their card and the names of their classes, which published files hold in
    part or not at all.

    Args:
        where: what to load; existing paths come first, then registered names, then the hub
            (``owner/name``, or ``owner/name:file``).
        config: the published configuration of a file that has none beside it or inside it.
        device, dtype: where to and as what; None keeps the weights' own type, and gives fp32 for what comes with vistok.
        inference_only: leave out tensors that only training uses and whose layout vistok does not know.
    Raises:
        CheckpointError: not found, not readable, no known layout, or tensors that do not fit.
    """
    name = _published_name(str(where))
    return _load(where, name=name, config=config, device=device, dtype=dtype, inference_only=inference_only)


def _load(
    where: str | Path,
    *,
    name: str,
    config: dict[str, Any] | None = None,
    device: torch.device | str,
    dtype: torch.dtype | None,
    inference_only: bool = False,
) -> PretrainedModel:
    """``from_pretrained`` of what is the registered model ``name`` where it is in a published layout; "" for none."""
    path = Path(where)
    if not path.exists() and str(where) in cards() and get_card(str(where)).embedded:
        from vistok.data.assets import asset_path

        path = asset_path(f"weights/{where}")
        dtype = dtype or torch.float32  # kept at half precision, which not every device computes in
    elif not path.exists():
        path, config = _fetch(str(where), config)
    weights = _weights_in(path) if path.is_dir() else path
    if config is None:
        config = _config_beside(weights)
    state = read_state(weights)
    if config is not None and "family" in config:
        cls = model_class(str(config["family"]))
        model = empty_model(
            cls, from_dict(cls.config_class, config.get("config", {}), where=str(weights.parent / CONFIG_FILE))
        )
        model.name = str(config.get("name", ""))
    else:
        config = _metadata(weights) if config is None else config
        model, state = convert_state(state, config=config, where=str(weights), inference_only=inference_only)
        model.name = name
        card = model.card
        if card is not None and card.family == model.family and card.kind == "generator":
            config = replace(model.config, sampling=model.config.sampling.updated(**card.sampling))
            model.config = _with_class_names(config, card)
    model.load_weights(state, where=str(weights))
    return model.to(device=device, dtype=dtype).eval()


def _with_class_names(config: Any, card: ModelCard) -> Any:
    """A published generator's classes are ImageNet's, whose names no checkpoint has."""
    from vistok.data.imagenet import imagenet_names

    of_imagenet = card.kind == "generator" and card.dataset == "imagenet" and getattr(config, "num_classes", 0) == 1000
    return (
        replace(config, class_names=tuple(imagenet_names().values()))
        if of_imagenet and not config.class_names
        else config
    )


def load_tokenizer(
    where: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Tokenizer:
    """``from_pretrained`` of what must be a tokenizer.

    Raises:
        CheckpointError: as ``from_pretrained``, or another kind of model.
    """
    model = from_pretrained(where, device=device, dtype=dtype)
    if not isinstance(model, Tokenizer):
        raise CheckpointError(f"{where} holds a {type(model).__name__}, and a tokenizer is wanted")
    return model


def convert_state(
    state: dict[str, Tensor],
    *,
    config: dict[str, Any] | None = None,
    where: str = "checkpoint",
    inference_only: bool = False,
) -> tuple[PretrainedModel, dict[str, Tensor]]:
    """Recognise a published state dict: an empty model for it, and the state under our names.

    The model's parameters are on the meta device until ``load_weights`` gives it the state.

    Args:
        state: the published tensors.
        config: the published configuration.
        where: what messages call it.
        inference_only: see ``from_pretrained``.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    source = recognise(shapes, where=where)
    if source.losses:
        state = {key: tensor for key, tensor in state.items() if not key.startswith(source.losses)}
    extra = [key for key in state if source.ignorable and key.startswith(source.ignorable)]
    if extra and not inference_only:
        raise CheckpointError(
            f"{where} has {len(extra)} tensors of a training head whose layout vistok does not know "
            f"({', '.join(sorted(extra)[:6])}); load it without them: from_pretrained(..., inference_only=True)"
        )
    state = {key: tensor for key, tensor in state.items() if key not in set(extra)}
    try:
        ours = source.read_config(shapes, config)
        model = empty_model(model_class(source.family), ours)
    except PublishedConfigError as error:
        raise PublishedConfigError(f"{where}: {error}") from error
    except (LookupError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:  # sizes that make no sense
        raise CheckpointError(
            f"{where} looks like {source.title}, but parts of that layout are missing or mis-shaped: {error!r}"
        ) from error
    return model, source.key_map(ours).to_ours(state)


def to_published(model: PretrainedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state and configuration of a model in its published layout.

    Raises:
        VistokError: its family has none, or its options are not part of it.
    """
    from vistok.convert import sources

    name = model.name or model.family
    for source in sources():
        if source.family == model.family:
            try:
                config = source.wrap_config(model.config)
            except ConfigError as error:
                raise VistokError(
                    f"{name} cannot be written in its published layout: {error}; use save_pretrained"
                ) from error
            return source.key_map(model.config).to_published(model.state_dict()), config
    raise VistokError(f"{name} has no published layout to be written in; use save_pretrained")


def save_published(model: PretrainedModel, path: str | Path) -> None:
    """Write ``path`` (.safetensors) in the model's published layout, with its configuration beside it as YAML.

    ``from_pretrained(path)`` reads both.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise VistokError(f"a published layout is written as .safetensors, got {path}")
    from vistok.convert import sources

    state, config = to_published(model)
    text = yaml.safe_dump(config, sort_keys=False)
    inside = next(source.metadata for source in sources() if source.family == model.family)
    metadata = {"format": "pt"} if inside is None else inside(config)
    tensors = {key: tensor.contiguous().cpu() for key, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    _write_whole(path.with_suffix(".yaml"), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a plain torch state dict, on the CPU.

    Raises:
        CheckpointError: unreadable, not a state dict, or a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in CHECKPOINT_SUFFIXES:
            raise CheckpointError(f"{path} is not a checkpoint: wanted {', '.join(CHECKPOINT_SUFFIXES)}")
        # Training checkpoints often hold their arguments; a namespace of plain values runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain state dict: it is corrupted, or holds objects, which vistok does not load"
        ) from error
    except Exception as error:  # the formats' readers raise types of their own, from every depth
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}") from error
    while isinstance(state, dict) and (inside := [key for key in _WRAPPERS if isinstance(state.get(key), dict)]):
        state = state[inside[0]]
    pairs = state.items() if isinstance(state, dict) else ()
    if not pairs or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        raise CheckpointError(f"{path} is not a state dict: wanted names and tensors")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def empty_model(cls: type[PretrainedModel], config: Any) -> PretrainedModel:
    """The model with its parameters on the meta device: its sizes without its memory."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _SkipMetaDraws():
        return cls(config)


def _is_meta(device: torch.device | str) -> bool:
    return "meta" in (torch.device(device).type, torch.get_default_device().type)


class _SkipMetaDraws(TorchFunctionMode):
    """Leaves out random numbers for meta tensors: they have no values, and torch takes seconds to import what draws them."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        draws = getattr(function, "__name__", "").endswith(("normal_", "uniform_"))
        if draws and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return function(*args, **kwargs)


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside it, then rename; a failure leaves what was there."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _fetch(where: str, config: dict[str, Any] | None) -> tuple[Path, dict[str, Any] | None]:
    if where in cards():
        card: ModelCard = get_card(where)
        if not (card.hub_id or card.file):
            raise VistokError(f"no weights of {where} are published; {card.notes or 'train it'}")
        where = card.hub_id or card.file
    repository, _, file = where.partition(":")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no file or folder {where}, and no model of that name; {nearest(where, list_models())}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    def first_of(*names: str) -> Path | None:
        """The first of these files that the repository has; None if it has none of them."""
        for name in names:
            try:
                return Path(hf_hub_download(repository, name))
            except LocalEntryNotFoundError:  # no network, which says nothing of the repository
                raise
            except EntryNotFoundError:
                continue
        return None

    try:
        if file:
            return Path(hf_hub_download(repository, file)), config
        if config is None and (beside := first_of(*_CONFIG_FILES)) is not None:
            config = _read_config(beside)
        weights = first_of(WEIGHTS_FILE, _DIFFUSERS_FILE)
        if weights is None:
            raise CheckpointError(f"{where} on the Hugging Face hub has no {WEIGHTS_FILE} or {_DIFFUSERS_FILE}")
        return weights, config
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{where} cannot be fetched from the Hugging Face hub ({reason}); "
            "without a network, give a folder or file that is on this machine"
        ) from error


def _config_beside(weights: Path) -> dict[str, Any] | None:
    """The configuration that belongs to a file: a YAML file of its name (``save_published``), or the folder's."""
    published = weights.with_suffix(".yaml")
    path = next((path for name in _CONFIG_FILES if (path := weights.parent / name).exists()), None)
    if published.is_file() and not (weights.name in _WEIGHT_FILES and path):
        return load_yaml(published)
    return _read_config(path) if path else None


def _metadata(weights: Path) -> dict[str, str] | None:
    """What a safetensors file says of itself: some sources keep their configuration there."""
    if weights.suffix != ".safetensors":
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            return file.metadata()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read as a checkpoint: {error}") from error


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"the folder {folder} has none of {', '.join(_WEIGHT_FILES)}")


def _read_config(path: Path) -> dict[str, Any]:
    if path.suffix == ".yaml":
        return load_yaml(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a configuration: wanted keys and values, got {type(content).__name__}")
    return content


def _published_name(where: str) -> str:
    for name, card in cards().items():
        if where in (name, card.hub_id, card.file) and where:
            return name
    return ""
