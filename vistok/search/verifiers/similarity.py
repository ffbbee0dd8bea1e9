"""How alike images are to a reference: DINO features, LPIPS, or the stand-in of small features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.base import tensor_hash
from vistok.search.verifiers.base import Verifier
from vistok.tokens import Tokens

# Images [N, 3, H, W] in [0, 1], and one [1, 3, H, W] that all are compared with -> likenesses [N], higher is more alike.
Likeness = Callable[[Tensor, Tensor], Tensor]


class SimilarityVerifier(Verifier):
    """Likeness to a reference image: the condition's own, where a condition is an image, else the one given for it.

    Args:
        likeness: ``lpips`` (minus the distance), ``lite0`` (minus the stand-in's, by its own name), the name
            of a vision transformer of timm, as ``vit_base_patch14_dinov2.lvd142m`` (the cosine of mean patch
            features), or a function.
        references: one image [3, H, W] in [0, 1] for all conditions, or images by condition.
        device: where a named network works.
    Raises:
        CheckpointError: weights are not to be had.
    """

    def __init__(
        self,
        likeness: str | Likeness,
        references: Tensor | Mapping[Any, Tensor] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.likeness = _named(likeness, device) if isinstance(likeness, str) else likeness
        title = likeness if isinstance(likeness, str) else getattr(likeness, "__name__", "function")
        self.name, self.references, self.device = f"similarity:{title}", references, device

    def settings(self) -> dict[str, Any]:
        """A fingerprint of the references."""
        if self.references is None:
            return {}
        images = {"": self.references} if isinstance(self.references, Tensor) else self.references
        return {"references": {str(condition): tensor_hash(image) for condition, image in images.items()}}

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
        # The candidates of one reference together, so that its features are computed once.
        rows: dict[int, list[int]] = {}
        references = [self._reference(entry) for entry in condition]
        for row, reference in enumerate(references):
            rows.setdefault(id(reference), []).append(row)
        scores = torch.empty(len(images), device=self.device)
        for own in rows.values():
            wanted = _at_size(references[own[0]].to(images)[None], images.shape[2:]).to(self.device)
            scores[own] = self.likeness(images[own].to(self.device), wanted).to(scores)
        return scores

    def _reference(self, condition: Any) -> Tensor:
        if isinstance(condition, Tensor) and condition.ndim == 3:
            return condition
        if isinstance(self.references, Tensor):
            return self.references
        if self.references is None or condition not in self.references:
            raise VistokError(f"the verifier {self.name} has no reference image for the condition {condition!r}")
        return self.references[condition]


def _at_size(image: Tensor, size: Sequence[int]) -> Tensor:
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _named(name: str, device: torch.device | str) -> Likeness:
    if name == "lpips":
        from vistok.losses.perceptual import LPIPS

        lpips = LPIPS.pretrained().to(device)
        return lambda x, y: -lpips(x, y)
    if name == "lite0":
        from vistok.losses.lite0_distance import Lite0Distance

        distance = Lite0Distance().to(device)
        return lambda x, y: -distance(x, y)
    from vistok.losses.teacher import create_teacher

    return pooled_cosine(create_teacher(name).to(device))


def pooled_cosine(features: Callable[[Tensor], Tensor]) -> Likeness:
    """The cosine of mean features, of a network that gives maps [N, h, w, C]."""

    def likeness(x: Tensor, y: Tensor) -> Tensor:
        a, b = (features(images).mean(dim=(1, 2)) for images in (x, y))
        return F.cosine_similarity(a, b, dim=-1)

    return likeness
