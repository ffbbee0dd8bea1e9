"""CLIP as a verifier: how well images fit texts, and how much people would like them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import CheckpointError
from vistok.hub import read_state
from vistok.models.base import state_hash
from vistok.models.clip import ClipImages
from vistok.search.verifiers.base import Verifier
from vistok.search.verifiers.texts import condition_texts
from vistok.tokens import Tokens

_AESTHETIC_FILE = "sac+logos+ava1-l14-linearMSE.pth"
_AESTHETIC_URL = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{_AESTHETIC_FILE}"
_AESTHETIC_WIDTHS = (768, 1024, 128, 64, 16, 1)
_AESTHETIC_PLACES = (0, 2, 4, 6, 7)  # of the linear layers among the published model's; the others are dropout


class ClipVerifier(Verifier):
    """CLIPScore: 100 times the cosine of an image and its condition's text.

    Args:
        architecture, weights: open_clip's names.
        class_names: texts of class numbers.
        template: of the texts, as "a photo of {}".
        device: where it works.
    """

    def __init__(
        self,
        architecture: str = "ViT-B-32",
        weights: str = "openai",
        *,
        class_names: Sequence[str] = (),
        template: str = "{}",
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = ClipImages(architecture, weights).to(device)
        self.class_names, self.template = tuple(class_names), template
        self.name = f"clip:{architecture}" + (f":{weights}" if weights else ":random")

    def settings(self) -> dict[str, Any]:
        """How a text is made of a condition."""
        return {"template": self.template}

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``."""
        texts = [self.template.format(text) for text in condition_texts(condition, self.class_names, self.name)]
        return 100.0 * (self.network.images(images) * self.network.texts(texts)).sum(dim=-1)


class AestheticVerifier(Verifier):
    """LAION's improved aesthetic predictor: a small network on CLIP ViT-L-14's image embedding; 1 to 10, whatever the condition.

    Args:
        weights: its file; else the one of that name in torch's cache of checkpoints.
        architecture, clip_weights: open_clip's names, of an embedding as wide as the head's.
        device: where it works.
    Raises:
        CheckpointError: weights are not to be had, or do not fit.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        architecture: str = "ViT-L-14",
        clip_weights: str = "openai",
        device: torch.device | str = "cpu",
    ) -> None:
        self.head = _aesthetic_head(Path(weights) if weights else _cached_aesthetic()).to(device)
        self.network = ClipImages(architecture, clip_weights).to(device)
        self.name = f"aesthetic:{architecture}"

    def settings(self) -> dict[str, Any]:
        """A fingerprint of the head."""
        return {"head": state_hash(self.head.state_dict())}

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Tensor | None = None,
        num_new: int | None = None,
    ) -> Tensor:
        """See ``Verifier``."""
        return self.head(self.network.images(images))[:, 0]


def _cached_aesthetic() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / _AESTHETIC_FILE
    if not path.is_file():
        raise CheckpointError(f"the aesthetic head is not on this machine; download {_AESTHETIC_URL} to {path}")
    return path


@lru_cache(maxsize=2)
def _aesthetic_head(path: Path) -> nn.Module:
    state = read_state(path)
    first = state.get("layers.0.weight")
    widths = (_AESTHETIC_WIDTHS[0] if first is None else first.shape[1], *_AESTHETIC_WIDTHS[1:])
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    head = nn.Sequential(*layers)
    named = {
        f"{index}.{kind}": state.get(f"layers.{place}.{kind}")
        for index, place in enumerate(_AESTHETIC_PLACES)
        for kind in ("weight", "bias")
    }
    missing = [name for name, tensor in named.items() if tensor is None]
    if missing or len(state) != len(named):
        raise CheckpointError(f"{path} is not the improved aesthetic predictor: its layers are {sorted(state)[:4]} ...")
    try:
        head.load_state_dict(named)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not the improved aesthetic predictor: {error}") from error
    return head.requires_grad_(False).eval()
