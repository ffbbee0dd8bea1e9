"""CLIPScore (arXiv:2104.08718): how well pictures fit the texts that they were made of, as CLIP sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.data.sources import ImageSource
from vistok.errors import CheckpointError, VistokError
from vistok.metrics.feature_set import FeatureWork
from vistok.metrics.features import create_clip
from vistok.metrics.processes import all_agree, main_first
from vistok.metrics.protocols import Protocol
from vistok.metrics.set_metrics import Estimate, mean_of
from vistok.metrics.vit_features import ClipFeatures
from vistok.models.clip import ClipImages

_WEIGHT = 2.5
_BATCH = 64  # texts at a time


def clip_score(cosines: Tensor, *, weight: float = _WEIGHT) -> Estimate:
    """The mean of weight * max(cosine, 0), and its standard error over the pictures.

    Args:
        cosines: float [N], from -1 to 1, of each picture's embedding and its text's.
        weight: the paper's 2.5; 100 for the scale of others.
    Returns:
        From 0 to ``weight``; higher is better. The error is NaN for one picture.
    Raises:
        VistokError: another shape, none, or values outside [-1, 1].
    """
    return mean_of(weight * _checked(cosines).clamp_min(0.0))


def text_cosines(images: Tensor, captions: Sequence[str], network: ClipImages, *, prefix: str = "") -> Tensor:
    """Cosines of pictures and their texts.

    Args:
        images: embeddings of length 1 of N pictures, [N, E].
        captions: N texts; what CLIP's 77 tokens do not hold is cut off.
        network: reads the texts, wherever it is.
        prefix: before every text; the paper's is "A photo depicts ".
    Returns:
        float64 [N].
    Raises:
        VistokError: another number of texts, or of features.
    """
    if images.ndim != 2 or len(images) != len(captions) or images.shape[1] != network.dim:
        raise VistokError(
            f"embeddings [N, {network.dim}] and N texts are compared, got {list(images.shape)} and {len(captions)}"
        )
    places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
    different = [prefix + text for text in places]
    parts = [network.texts(different[start : start + _BATCH]).cpu() for start in range(0, len(different), _BATCH)]
    texts = torch.cat(parts)[torch.tensor([places[text] for text in captions])]
    return (images.cpu().double() * texts.double()).sum(dim=1)


def _checked(cosines: Tensor) -> Tensor:
    if cosines.ndim != 1 or not len(cosines) or not cosines.is_floating_point():
        raise VistokError(f"cosines are floats [N], one or more, got {cosines.dtype} {list(cosines.shape)}")
    if not bool((cosines.abs() <= 1.0 + 1e-4).all()):  # also catches NaN
        raise VistokError("cosines lie from -1 to 1; embeddings are to be of length 1")
    return cosines


@dataclasses.dataclass(frozen=True)
class TextFit:
    """How well a set fits its texts, or why that is not measured.

    Attributes:
        score, cosine: CLIPScore and the plain cosine, means over the pictures with a text.
        described: network, its weights' hash, prefix and number of pictures, for results.
        reason: why there are none.
    """

    score: Estimate | None = None
    cosine: Estimate | None = None
    described: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""


def measure_text_fit(
    samples: ImageSource,
    places: Sequence[int],
    work: FeatureWork,
    protocol: Protocol,
    *,
    size: int | None = None,
    download: bool = True,
) -> TextFit:
    """CLIPScore of the samples that have a caption.

    Args:
        samples: pictures with captions.
        places: those of them that count, and can be read.
        work: how features are made; its extractor is not used.
        protocol: names the network and the prefix.
        size: crop the samples to this side first; None takes them as they are.
        download: whether the network may be asked for weights.
    """
    texts = [samples.caption(place) for place in places]
    with_text = [place for place, text in zip(places, texts, strict=True) if text]
    if not with_text:
        return TextFit(reason="the samples have no texts; name a file of them (--captions) if they were made of texts")
    clip, reason = main_first(lambda: _find(protocol.clip_model, download), work.accelerator)
    if not all_agree(0 if clip is None else int(clip.weight_hash[:6], 16) + 1, work.accelerator):
        raise CheckpointError("the processes found different CLIP weights; put the same files on every machine")
    if clip is None:
        return TextFit(reason=reason)
    clip.to(work.device)
    work = dataclasses.replace(work, extractor=clip, layers=())
    features = work.collect(samples, "samples and texts", places=with_text, size=size, protocol=protocol)
    cosines = text_cosines(features.pooled, [text for text in texts if text], clip.network, prefix=protocol.clip_prefix)
    described = {
        "network": protocol.clip_model,
        "weight_hash": clip.weight_hash,
        "prefix": protocol.clip_prefix,
        "images": len(cosines),
    }
    return TextFit(clip_score(cosines), mean_of(cosines), described)


def _find(model: str, download: bool) -> tuple[ClipFeatures | None, str]:
    try:
        return create_clip(model, download=download), ""
    except CheckpointError as error:
        return None, str(error)
