"""The contract of every tokenizer: images to ``Tokens`` and back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from vistok.config import from_dict, to_dict
from vistok.errors import CheckpointError, VistokError
from vistok.registry import ModelCard, cards
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.models.target import Target

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_HASHED_VALUES = 256


def state_hash(state: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights: 16 hex digits, of up to 256 evenly spaced values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().flatten()
        picked = flat[:: max(1, flat.numel() // _HASHED_VALUES)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def tensor_hash(tensor: Tensor) -> str:
    """A fingerprint of one tensor's shape and all its values: 16 hex digits."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class PretrainedModel(nn.Module, PyTorchModelHubMixin, library_name="vistok", tags=["vistok"]):
    """A module that is built from a frozen dataclass and saved as ``config.json`` + ``model.safetensors``.

    Attributes:
        family: the registry's word for this class.
        config_class: the dataclass that configures it.
        name: the registered name it was made under, or "".
    """

    family: ClassVar[str]
    config_class: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = ""
        self._hash: tuple[Any, str] = (None, "")

    @property
    def card(self) -> ModelCard | None:
        """What is known about the model of this name; None for one without a registered name."""
        return cards().get(self.name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return next(self.parameters()).dtype

    def weight_hash(self) -> str:
        """A fingerprint of the weights: 16 hex digits, equal for equal weights.

        It reads up to 256 evenly spaced values of every tensor, so it is quick on any size, and any
        training step changes it.
        """
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in (*self.parameters(), *self.buffers()))
        # Fused optimizers change weights without counting it, so nothing is kept while training.
        if self._hash[0] != version or self.training:
            self._hash = (version, state_hash(self.state_dict()))
        return self._hash[1]

    def train(self, mode: bool = True) -> PretrainedModel:
        """Set training mode."""
        self._hash = (None, "")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> PretrainedModel:
        self._hash = (None, "")  # another type, maybe at a place in memory that was free again
        return super()._apply(fn, recurse)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enabled

    def no_weight_decay(self) -> tuple[str, ...]:
        """``fnmatch`` patterns of parameters that get no weight decay, besides all one-dimensional ones."""
        return ()

    def load_weights(self, state: dict[str, Tensor], *, where: str = "checkpoint") -> None:
        """Take over a state dict, strictly, without copying where device and dtype allow.

        Raises:
            CheckpointError: names every missing, unexpected and mis-shaped tensor.
        """
        own = self.state_dict()
        report = key_report(own, state)
        if report:
            raise CheckpointError(f"{where} does not fit {type(self).__name__} ({self.name or self.family}):\n{report}")
        self.load_state_dict(state, strict=True, assign=any(tensor.is_meta for tensor in own.values()))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the model into a folder; a failure leaves the folder's old model whole.

        Args:
            save_directory: made where it is missing.
            push_to_hub: upload it too; its other arguments are ``push_to_hub``'s.
            repo_id: on the hub; default: the folder's name.
            model_card_kwargs: for the README.md, which is written where there is none.
        """
        # Not the mixin's own, which begins by deleting the old configuration.
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(model_card_kwargs or {})).save(folder / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and configuration under temporary names, then rename both."""
        state = {key: tensor.detach().contiguous().cpu() for key, tensor in self.state_dict().items()}
        content = {"family": self.family, "name": self.name, "config": to_dict(self.config)}
        weights, config = save_directory / WEIGHTS_FILE, save_directory / CONFIG_FILE
        temporary = {path: path.with_name(f".{path.name}.tmp") for path in (weights, config)}
        try:
            save_file(state, temporary[weights], metadata={"format": "pt", "family": self.family})
            temporary[config].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            for path in temporary:
                os.replace(temporary[path], path)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **_: Any) -> PretrainedModel:
        from vistok.hub import from_pretrained  # the hub knows the models; this is only the mixin's door to it

        model = from_pretrained(model_id, device=map_location)
        if not isinstance(model, cls):
            raise CheckpointError(f"{model_id} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    @classmethod
    def from_config(cls, config: dict[str, Any] | Any) -> PretrainedModel:
        """Build with fresh weights from a dataclass or its dict."""
        if isinstance(config, dict):
            config = from_dict(cls.config_class, config, where=f"{cls.family} configuration")
        return cls(config)


def key_report(wanted: dict[str, Tensor], got: dict[str, Tensor], *, limit: int = 12) -> str:
    """What keeps ``got`` from being loaded as ``wanted``, a line a kind; "" if nothing does."""
    missing = sorted(wanted.keys() - got.keys())
    unexpected = sorted(got.keys() - wanted.keys())
    both = [(key, wanted[key], got[key]) for key in sorted(wanted.keys() & got.keys())]
    shapes = [f"{key} is {tuple(b.shape)}, wanted {tuple(a.shape)}" for key, a, b in both if a.shape != b.shape]
    types = [
        f"{key} is {b.dtype}, wanted {a.dtype}" for key, a, b in both if a.is_floating_point() != b.is_floating_point()
    ]
    lines = []
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes, "of a wrong type": types}
    for title, names in kinds.items():
        if names:
            more = f", and {len(names) - limit} more" if len(names) > limit else ""
            lines.append(f"  {len(names)} {title}: {', '.join(names[:limit])}{more}")
    return "\n".join(lines)


class Tokenizer(PretrainedModel, ABC):
    """Turns images into ``Tokens`` and back.

    What only some families can do is asked of the object: ``ordered`` (any prefix of the tokens can
    be decoded), ``adaptive`` (``encode`` chooses a length for each image), ``continuous`` (latents
    instead of ids), ``conditional`` (decoding takes a condition).
    """

    ordered: bool = False
    adaptive: bool = False
    continuous: bool = False
    conditional: bool = False

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.config.image_size

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width apart, of the few models whose images are no squares."""
        return self.image_size, self.image_size

    @property
    def num_tokens(self) -> int:
        """The largest number of tokens of an image."""
        return self.config.num_tokens

    @property
    @abstractmethod
    def codebook_size(self) -> int | tuple[int, ...] | None:
        """Number of ids, or the factors of which it is the product, or None for continuous latents."""

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        *,
        length: int | Sequence[int] | Tensor | None = None,
        target: Target | tuple[str, float] | None = None,
        generator: torch.Generator | None = None,
        decode_options: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """Turn images into tokens, without gradients.

        Args:
            images: float RGB in [0, 1], shape [B, 3, H, W]; H = W = ``image_size``.
            length: keep only this many leading tokens, 1..``num_tokens``: one number, or one for each image. For ordered tokenizers.
            target: keep the fewest leading tokens whose decoding reaches a quality: ``("psnr", 24.0)``, ``("lpips",
                0.2)`` or a ``Target``. An image that does not reach it keeps all its tokens, and a warning is logged;
                ``vistok.models.target.find_lengths`` tells which, and how the search works. For ordered tokenizers.
            generator: draws a continuous tokenizer's sample; None takes the mean.
            decode_options: keyword arguments of ``decode`` while searching for the target.
        Returns:
            Tokens with ids [B, L] in [0, codebook_size), or latents, and lengths [B].
        Raises:
            VistokError: wrong shape, type or values; a length or target that this tokenizer cannot have, or both.
        """
        self.check_images(images)
        lengths = self._checked_length(length, len(images))
        if target is None:
            if decode_options is not None:
                raise VistokError("decode_options are for the search for a target; give target=, or leave them away")
            tokens = self._encode_tokens(images, generator=generator, length=None if lengths is None else max(lengths))
            return tokens if lengths is None else tokens.truncate(lengths)
        if lengths is not None:
            raise VistokError(f"either a length or a target is wanted, got length={length!r} and target={target!r}")
        from vistok.models.target import Target, find_lengths

        target = Target.parse(target)
        if not self.ordered:
            raise VistokError(f"{self._label} always gives {self.num_tokens} tokens, so it cannot have a target")
        tokens = self._encode_tokens(images, generator=generator, length=None)
        found = find_lengths(self, images, tokens, target, decode_options=decode_options)
        if not found.reached.all():
            missed = (~found.reached).nonzero()[:, 0].tolist()
            logger.warning(
                "%d of %d images do not reach %s %g with all their tokens and keep them: %s",
                len(missed),
                len(images),
                target.name,
                target.value,
                missed[:10],
            )
        return tokens.truncate(found.lengths)

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        """A family's own encoding, of images that are checked.

        Args:
            images: [B, 3, H, W], of any device and float type.
            generator: see ``encode``.
            length: no more leading tokens than this are needed; a family may give more. None: all.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _encode_tokens")

    def _checked_length(self, length: int | Sequence[int] | Tensor | None, batch: int) -> list[int] | None:
        """One length for each image, or None for all tokens."""
        if length is None:
            return None
        values = length.tolist() if isinstance(length, Tensor) else length
        one = not isinstance(values, Sequence) or isinstance(values, str)
        lengths = [values] * batch if one else list(values)
        if len(lengths) != batch or any(
            isinstance(value, bool) or not isinstance(value, Integral) for value in lengths
        ):
            raise VistokError(f"length is one whole number, or one for each of {batch} images, got {length!r}")
        if any(value != self.num_tokens for value in lengths) and not self.ordered:
            raise VistokError(
                f"{self._label} always gives {self.num_tokens} tokens, so length={length} cannot be had; "
                "ordered tokenizers can be cut"
            )
        if not 1 <= min(lengths) <= max(lengths) <= self.num_tokens:
            raise VistokError(f"{self._label} gives 1 to {self.num_tokens} tokens, so length={length} cannot be had")
        return [int(value) for value in lengths]

    @property
    def _label(self) -> str:
        """What errors call it."""
        return self.name or self.family

    @abstractmethod
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Turn tokens into images [B, 3, H, W], without gradients.

        Args:
            tokens: of this tokenizer; rows may differ in length where it is ordered or adaptive.
            condition: what a conditional tokenizer decodes with.
            clamp: cut the values to [0, 1].
        """

    def decode_noise(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Options of ``decode`` for images whose randomness depends on these seeds, one a row, alone; {} where there is none."""
        return {}

    def decode_forwards(self, **options: Any) -> int:
        """How many passes of the decoder an image takes when ``decode`` has these options."""
        return 1

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """What ``forward`` draws for one image in training, by the name of its argument, without a batch axis.

        Training draws for every image by itself, so that neither the size of a batch nor the number
        of processes changes the run. {} if images need no draws of their own.
        """
        return {}

    def check_images(self, images: Tensor) -> None:
        """Raise a ``VistokError`` unless ``images`` is a float batch of this tokenizer's size in [0, 1]."""
        name, (height, width) = self.name or self.family, self.image_shape
        if not isinstance(images, Tensor):
            raise VistokError(
                f"{name} takes a tensor of images [B, 3, {height}, {width}], got {type(images).__name__}; "
                "read files with vistok.load_images(..., like=model)"
            )
        if images.ndim != 4 or images.shape[1:] != (3, height, width) or not len(images):
            raise VistokError(
                f"{name} takes images [B, 3, {height}, {width}], got {list(images.shape)}; "
                "crop and resize with vistok.load_images(..., like=model)"
            )
        if not images.is_floating_point():
            raise VistokError(f"{name} takes float images in [0, 1], got {images.dtype}; divide 8-bit values by 255")
        low, high = (float(value) for value in images.aminmax())
        if not (low >= -1e-3 and high <= 1.0 + 1e-3):  # also catches NaN
            raise VistokError(f"{name} takes images in [0, 1], got values from {low:.4g} to {high:.4g}")

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise a ``VistokError`` unless ``tokens`` can be decoded by this tokenizer."""
        name = self.name or self.family
        if not isinstance(tokens, Tokens):
            raise VistokError(
                f"{name}.decode takes vistok.Tokens, got {type(tokens).__name__}; wrap ids in Tokens(ids=...)"
            )
        if tokens.is_continuous != self.continuous:
            kinds = {True: "continuous latents", False: "ids"}
            raise VistokError(f"{name} decodes {kinds[self.continuous]}, got {kinds[tokens.is_continuous]}")
        if tokens.family and tokens.family != self.family:
            raise VistokError(f"these tokens are of the family {tokens.family}, and {name} is of {self.family}")
        sizes_differ = tokens.codebook_size is not None and tokens.codebook_size != self.codebook_size
        if not self.continuous and sizes_differ:
            raise VistokError(f"these tokens have codebook {tokens.codebook_size}, and {name} has {self.codebook_size}")
        if not len(tokens):
            raise VistokError(f"{name}.decode got no rows")
        shortest, longest = int(tokens.lengths.min()), int(tokens.lengths.max())
        if longest > self.num_tokens or shortest < 1:
            raise VistokError(f"{name} decodes 1 to {self.num_tokens} tokens an image, got {shortest} to {longest}")
        if not (self.ordered or self.adaptive) and shortest < self.num_tokens:
            raise VistokError(
                f"{name} has a fixed length of {self.num_tokens} tokens and was not trained to decode fewer, "
                f"got {shortest}; ordered tokenizers can (vistok.list_models() shows which)"
            )
