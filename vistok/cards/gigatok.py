"""Cards of GigaTok's tokenizers.

rFID: ImageNet validation, 50,000 images, 256 pixels, ADM evaluator; from the official repository.
"""

from __future__ import annotations

from typing import Any

from vistok.registry import ModelCard

_PAPER = "GigaTok, arXiv:2504.08736"
_LICENCE = "MIT"
_REPOSITORY = "YuuTennYi/GigaTok"
_PREPROCESSING = {
    "image_size": 256,
    "crop": "arc",
    "interpolation": "bicubic",
    "range": [0.0, 1.0],
    "note": "ADM's centre crop; brought to [-1, 1] inside. The official evaluation writes 8 bits as 127.5 x + 128, cut off",
}


def _sizes(encoder: str, decoder: str) -> dict[str, Any]:
    return {"encoder": encoder, "decoder": decoder}


def _sequence(
    short: str, sizes: tuple[str, str], file: str, metrics: dict[str, float], *, notes: str = "", **config: Any
) -> ModelCard:
    return ModelCard(
        name=f"gigatok_{short}_256.imagenet",
        family="gigatok",
        config=_sizes(*sizes) | config,
        file=f"{_REPOSITORY}:{file}",
        licence=_LICENCE,
        preprocessing=_PREPROCESSING,
        metrics=metrics,
        paper=_PAPER,
        notes=notes,
    )


def _grid(short: str, sizes: tuple[str, str], **config: Any) -> ModelCard:
    return ModelCard(
        name=f"gigatok_{short}_2d_256.imagenet",
        family="gigatok",
        config=_sizes(*sizes) | {"layout": "2d"} | config,
        licence=_LICENCE,
        preprocessing=_PREPROCESSING,
        paper=_PAPER,
        notes="the paper's comparison on a grid; trains from its configuration, no weights are published",
    )


CARDS = (
    _sequence("ss", ("small", "small"), "VQ_SS256_e100.pt", {"rfid": 1.01, "lpips": 0.2226}),
    _sequence("sb", ("small", "base"), "VQ_SB256_e200.pt", {"rfid": 0.89, "lpips": 0.2121}),
    _sequence("bl", ("base", "large"), "VQ_BL256_e200.pt", {"rfid": 0.81, "lpips": 0.2059}),
    _sequence(
        "bl_dino_disc",
        ("base", "large"),
        "VQ_BL256_dino_disc.pt",
        {"rfid": 0.51, "lpips": 0.2056},
        notes="the same network as gigatok_bl_256.imagenet, trained against a discriminator on DINO's features",
    ),
    _sequence(
        "xlxxl",
        ("xl", "xxl"),
        "VQ_XLXXL256_e300.pt",
        {"rfid": 0.79, "lpips": 0.1947},
        notes="2.9 billion parameters: 11.6 GB in fp32",
        entropy_weight=0.005,
    ),
    _grid("ss", ("small", "small")),
    _grid("sb", ("small", "base"), layers="plain"),
    _grid("bl", ("base", "large"), layers="plain", entropy_weight=0.005),
    ModelCard(
        name="gigatok_tiny_64.emoji",
        family="gigatok",
        config={
            "image_size": 64,
            "base_channels": 32,
            "multipliers": [1, 1, 1, 2],
            "decoder_multipliers": [1, 1, 1, 2],
            "num_blocks": 1,
            "map_channels": 64,
            "encoder": {"width": 128, "depth": 2, "num_heads": 4},
            "decoder": {"width": 128, "depth": 3, "num_heads": 4},
            "num_tokens": 64,
            "codebook_size": 1024,
            "gradient": "straight_through",
            "entropy_weight": 0.005,
            "repa_dim": 112,
            "repa_depth": 2,
            "usage_window": 0,
            "init": "local",
        },
        licence="Apache-2.0",
        preprocessing={"image_size": 64, "crop": "center", "interpolation": "bicubic", "range": [0.0, 1.0]},
        paper=_PAPER,
        notes="no weights are shipped: `vistok train configs/gigatok/tiny.yaml` makes them in minutes",
    ),
)
