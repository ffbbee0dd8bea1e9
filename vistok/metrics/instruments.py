"""The networks that an evaluation measures with, found once, and alike on all processes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from vistok.errors import CheckpointError, MissingExtraError
from vistok.metrics.extractor import FeatureExtractor
from vistok.metrics.features import choose_extractor, may_download
from vistok.metrics.processes import all_agree, main_first
from vistok.metrics.protocols import Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Features = Literal["auto", "inception", "lite0", "dinov2", "clip", "none"]
FEATURES = ("auto", "inception", "lite0", "dinov2", "clip", "none")
_LPIPS_HOST = "https://download.pytorch.org"


@dataclass
class Instruments:
    """What measures, and why the rest does not.

    Attributes:
        extractor: of the Fréchet distance.
        lpips: two batches of images to a distance a pair.
        left_out: metrics that are not measured, and the reasons.
        notes: how the extractor departs from the protocol.
    """

    extractor: FeatureExtractor | None = None
    lpips: nn.Module | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions that took part."""
        return () if self.extractor is None else (self.extractor.package,)

    def describe(self) -> dict[str, Any] | None:
        """The extractor, for a result."""
        if self.extractor is None:
            return None
        return {key: getattr(self.extractor, key) for key in ("name", "metric", "dims", "weight_hash")}


def gather_instruments(
    protocol: Protocol,
    *,
    features: Features,
    weights: str | None,
    lpips: bool,
    download: bool,
    accelerator: Accelerator | None,
    device: torch.device,
) -> Instruments:
    """Find the networks, the main process first; see ``evaluate_reconstruction`` for the options.

    Raises:
        CheckpointError: a named extractor cannot be had, or the processes found different weights.
    """
    found = Instruments()
    main = accelerator is None or accelerator.is_main_process
    main_first(lambda: _add_extractor(found, protocol, features, weights, download, main), accelerator)
    main_first(lambda: _add_lpips(found, lpips, download), accelerator)
    digest = "" if found.extractor is None else found.extractor.weight_hash[:6]
    if not all_agree(int(f"0{digest}", 16) * 2 + (found.lpips is not None), accelerator):
        raise CheckpointError("the processes found different weights; put the same files on every machine")
    for module in (found.extractor, found.lpips):
        if module is not None:
            module.to(device)
    return found


def _add_extractor(
    found: Instruments, protocol: Protocol, features: Features, weights: str | None, download: bool, main: bool
) -> None:
    if features == "none":
        found.left_out["fid"] = "not asked for"
        return
    names = tuple(dict.fromkeys((protocol.features, "lite0"))) if features == "auto" else (features,)
    resize = protocol.resize if names[0] == protocol.features else "own"
    found.extractor, reason = choose_extractor(names, weights=weights, download=download, resize=resize)
    if found.extractor is not None:
        found.extractor.eight_bit = protocol.eight_bit
    if found.extractor is None:
        if features != "auto":
            raise CheckpointError(reason)
        found.left_out["fid"] = reason
    elif found.extractor.name != protocol.features:
        metric = found.extractor.metric
        found.notes.append(f"features {found.extractor.name} instead of {protocol.features}: {metric} is no FID")
        if reason and main:
            logger.warning("%s is measured instead of the protocol's distance: %s", metric, reason)
    elif not found.extractor.weight_hash.startswith(protocol.weights_hash):
        found.notes.append(
            f"weights {found.extractor.weight_hash} instead of {protocol.weights} ({protocol.weights_hash}...)"
        )


def _add_lpips(found: Instruments, wanted: bool, download: bool) -> None:
    if not wanted:
        found.left_out["lpips"] = "not asked for"
        return
    from vistok.losses.perceptual import LPIPS

    # The network is asked only where the files are not here, and where it answers: no long wait.
    for allowed in (False, True):
        if allowed and not (download and may_download(_LPIPS_HOST)):
            return
        try:
            found.lpips = LPIPS.pretrained(download=allowed)
        except (CheckpointError, MissingExtraError) as error:
            found.left_out["lpips"] = str(error)
        else:
            found.left_out.pop("lpips", None)
            return
