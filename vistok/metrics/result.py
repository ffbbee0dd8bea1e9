"""Result files: what a number must carry along, as JSON and as a table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError

_LABELS = {
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", ""),
    "ms_ssim": ("MS-SSIM", ""),
    "lpips": ("LPIPS (VGG)", ""),
    "fid": ("rFID", ""),
    "fd_lite0": ("rFD-lite0 (not a FID)", ""),
    "is": ("inception score", ""),
    "score_lite0": ("score of lite0 (not an IS)", ""),
    "tokens_per_image": ("tokens an image", ""),
    "bits_per_pixel": ("bits a pixel", ""),
    "images_per_second": ("encode and decode", "images/s"),
    "seconds": ("all of it took", "s"),
}
_CODEBOOK_LABELS = {
    "usage": "codebook used",
    "entropy_bits": "entropy, bits",
    "perplexity": "perplexity",
    "dead_codes": "dead codes",
    "factor_usage": "least used factor",
}


def describe_run(device: torch.device, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Versions, device, command and date, for a result.

    Args:
        device: where the model ran.
        packages: distributions that took part, besides torch, torchvision and numpy.
    """
    from vistok import __version__

    names = ("torch", "torchvision", "numpy", *packages)
    cuda = device.type == "cuda"
    return {
        "device": f"{device.type} ({torch.cuda.get_device_name(device)})" if cuda else device.type,
        "versions": {"vistok": __version__} | {name: importlib.metadata.version(name) for name in names},
        "command": shlex.join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def save_result(result: dict[str, Any], path: str | Path) -> None:
    """Write a result as JSON, through a temporary name, so that no reader sees half of it.

    Raises:
        VistokError: it holds NaN or infinity, which JSON does not know.
    """
    path = Path(path)
    try:
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise VistokError(f"the result cannot be written as JSON: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def format_table(result: dict[str, Any]) -> str:
    """A result of ``evaluate_reconstruction`` as text of two columns, with what is to be said about it below."""
    data = result["data"]
    rows = [
        ("model", f"{result['model']} ({result['weight_hash']})"),
        ("data", f"{data['spec']}, {result['images']} of {data['size']} images"),
        ("protocol", result["protocol"]["name"]),
    ]
    for key, (label, unit) in _LABELS.items():
        if result.get(key) is not None:
            spread = result.get("confidence", {}).get(key)
            suffix = "" if spread is None else f" +- {spread['std']:.2g}"
            rows.append((label, f"{result[key]:.4g}{suffix} {unit}".rstrip()))
    if result.get("target"):
        target = result["target"]
        rows.append(
            (f"reach {target['metric']} {target['value']:g}", f"{target['reached']} of {result['images']} images")
        )
    codebook = result["codebook"] or {}
    rows += [(label, f"{codebook[key]:.4g}") for key, label in _CODEBOOK_LABELS.items() if key in codebook]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    lines += [f"note: {text}" for text in result["deviations"]]
    lines += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    if result["unreadable"]:
        lines.append(f"unreadable: {result['unreadable']}: {', '.join(result['unreadable_names'])}")
    return "\n".join(lines)
