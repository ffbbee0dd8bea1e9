"""Metrics: pixels, Fréchet distances, codebook use, named protocols, and the evaluation of reconstructions.

Names are imported when first used: the command line asks this package for its options only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "psnr": "vistok.metrics.pixel",
    "ssim": "vistok.metrics.pixel",
    "ms_ssim": "vistok.metrics.pixel",
    "FeatureStats": "vistok.metrics.frechet",
    "frechet_distance": "vistok.metrics.frechet",
    "CodebookUsage": "vistok.metrics.codebook",
    "FeatureExtractor": "vistok.metrics.features",
    "create_extractor": "vistok.metrics.features",
    "Protocol": "vistok.metrics.protocols",
    "get_protocol": "vistok.metrics.protocols",
    "list_protocols": "vistok.metrics.protocols",
    "register_protocol": "vistok.metrics.protocols",
    "evaluate_curve": "vistok.metrics.curve",
    "evaluate_reconstruction": "vistok.metrics.reconstruction",
    "format_table": "vistok.metrics.result",
    "save_result": "vistok.metrics.result",
}
__all__ = list(_EXPORTS)

if TYPE_CHECKING:
    from vistok.metrics.codebook import CodebookUsage as CodebookUsage
    from vistok.metrics.curve import evaluate_curve as evaluate_curve
    from vistok.metrics.extractor import FeatureExtractor as FeatureExtractor
    from vistok.metrics.features import create_extractor as create_extractor
    from vistok.metrics.frechet import FeatureStats as FeatureStats
    from vistok.metrics.frechet import frechet_distance as frechet_distance
    from vistok.metrics.pixel import ms_ssim as ms_ssim
    from vistok.metrics.pixel import psnr as psnr
    from vistok.metrics.pixel import ssim as ssim
    from vistok.metrics.protocols import Protocol as Protocol
    from vistok.metrics.protocols import get_protocol as get_protocol
    from vistok.metrics.protocols import list_protocols as list_protocols
    from vistok.metrics.protocols import register_protocol as register_protocol
    from vistok.metrics.reconstruction import evaluate_reconstruction as evaluate_reconstruction
    from vistok.metrics.result import format_table as format_table
    from vistok.metrics.result import save_result as save_result


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vistok.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
