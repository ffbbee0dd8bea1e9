"""Models of human preference from other packages, which are asked for only when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistok.errors import CheckpointError, MissingExtraError
from vistok.search.verifiers.base import Verifier
from vistok.search.verifiers.texts import condition_texts
from vistok.tokens import Tokens

_PICKSCORE, _PICKSCORE_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
# A text and its images -> a score an image.
Judge = Callable[[str, list[Image.Image]], Sequence[float]]


class PreferenceVerifier(Verifier):
    """A published preference model.

    Args:
        judge: scores the images of one text.
        name: recorded in results.
        class_names: texts of class numbers.
    """

    def __init__(self, judge: Judge, *, name: str, class_names: Sequence[str] = ()) -> None:
        self.judge, self.name, self.class_names = judge, name, tuple(class_names)

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
        """See ``Verifier``; the images of a text are asked about at once."""
        texts = condition_texts(condition, self.class_names, self.name)
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        scores = torch.zeros(len(texts), dtype=torch.float64)
        for text in dict.fromkeys(texts):
            rows = [row for row, own in enumerate(texts) if own == text]
            found = self.judge(text, [Image.fromarray(pixels[row]) for row in rows])
            scores[rows] = torch.as_tensor(found, dtype=torch.float64).reshape(len(rows))
        return scores


def image_reward(class_names: Sequence[str] = (), *, device: str = "cpu") -> PreferenceVerifier:
    """ImageReward-v1.0 (arXiv:2304.05977), by its package.

    Raises:
        MissingExtraError: it is not installed.
    """
    package = _package("ImageReward", install="pip install image-reward")
    model = _loaded("ImageReward-v1.0", lambda: package.load("ImageReward-v1.0", device=device))

    def judge(text: str, images: list[Image.Image]) -> list[float]:
        scores = model.score(text, images)  # one image gives a number
        return scores if isinstance(scores, list) else [scores]

    return PreferenceVerifier(judge, name="image_reward", class_names=class_names)


def hpsv2(class_names: Sequence[str] = (), *, version: str = "v2.1") -> PreferenceVerifier:
    """HPSv2 (arXiv:2306.09341), by its package.

    Raises:
        MissingExtraError: it is not installed.
    """
    package = _package("hpsv2", install="pip install hpsv2")
    return PreferenceVerifier(
        lambda text, images: package.score(images, text, hps_version=version),
        name=f"hpsv2:{version}",
        class_names=class_names,
    )


def pickscore(class_names: Sequence[str] = (), *, device: str = "cpu") -> PreferenceVerifier:
    """PickScore v1 (arXiv:2305.01569), by transformers.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: the weights are not to be had.
    """
    package = _package("transformers", install="pip install 'vistok[text]'")
    processor = _loaded(_PICKSCORE_PROCESSOR, lambda: package.AutoProcessor.from_pretrained(_PICKSCORE_PROCESSOR))
    model = _loaded(_PICKSCORE, lambda: package.AutoModel.from_pretrained(_PICKSCORE).eval().to(device))

    def judge(text: str, images: list[Image.Image]) -> Tensor:
        texts = processor(text=text, padding=True, truncation=True, max_length=77, return_tensors="pt").to(device)
        pixels = processor(images=images, return_tensors="pt").to(device)
        a = torch.nn.functional.normalize(model.get_image_features(**pixels), dim=-1)
        b = torch.nn.functional.normalize(model.get_text_features(**texts), dim=-1)
        return model.logit_scale.exp().cpu() * (a @ b.t())[:, 0].cpu()

    return PreferenceVerifier(judge, name="pickscore", class_names=class_names)


def _package(module: str, *, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"this verifier needs {module}, which is not installed: {install}") from error


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be loaded ({error}); fetch it once where there is a network") from error
