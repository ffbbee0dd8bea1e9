"""A classifier as a verifier: the probability of the wanted class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.search.verifiers.base import Verifier
from vistok.tokens import Tokens


class ClassifierVerifier(Verifier):
    """The log-probability, in nats, that a classifier gives the condition's class.

    Args:
        logits: images [N, 3, H, W] in [0, 1] to [N, K].
        name: recorded in results.
        classes: what class a condition means: names in the order of the logits, or numbers by condition;
            None where conditions are the numbers.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        *,
        name: str,
        classes: Sequence[str] | Mapping[Any, int] | None = None,
    ) -> None:
        self.logits, self.name = logits, name
        if classes is not None and not isinstance(classes, Mapping):
            classes = {title: number for number, title in enumerate(classes)}
        self.classes = classes

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
        scores = self.logits(images).float().log_softmax(dim=-1)
        wanted = torch.tensor([self._number(entry, scores.shape[1]) for entry in condition], device=scores.device)
        return scores.gather(1, wanted[:, None])[:, 0]

    def _number(self, condition: Any, count: int) -> int:
        if self.classes is not None and condition in self.classes:
            return self.classes[condition]
        if isinstance(condition, int) and not isinstance(condition, bool) and 0 <= condition < count:
            return condition
        hint = nearest(condition, self.classes) if isinstance(condition, str) and self.classes else f"0 to {count - 1}"
        raise VistokError(f"the verifier {self.name} knows no class {condition!r}; {hint}")


def lite0_classifier() -> ClassifierVerifier:
    """ImageNet's classes by EfficientNet-lite0, for class numbers or ImageNet's names; stands in for a larger network, by its own name.

    Raises:
        MissingExtraError: the package with the weights is not installed.
    """
    from vistok.metrics.features import create_extractor

    return ClassifierVerifier(create_extractor("lite0").logits, name="class:lite0", classes=imagenet_classes())


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 names, as torchvision has them."""
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
