"""Cards of GigaTok's tokenizers and of the generators published with them.

rFID: ImageNet validation, 50,000 images, 256 pixels, ADM evaluator; from the official repository. gFID: 50,000 samples
of all classes against ADM's statistics; probe: top-1 of a linear probe on the generator's states, in percent.
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


_GPT_SIZES = {
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "xl": {"width": 1280, "depth": 36, "num_heads": 20},
    "xxl": {"width": 1536, "depth": 48, "num_heads": 24},
}
_GPT_SAMPLING = {"cfg_scale": 1.75, "cfg_start": 0.18}


def _gpt(size: str, short: str, file: str = "", gfid: float = 0.0, probe: float = 0.0, **config: Any) -> ModelCard:
    notes = (
        "the guidance was searched model by model; 1.75 from 18 percent on is the official example's"
        if file
        else "trains from its configuration, no weights are published"
    )
    return ModelCard(
        name=f"gpt_{size}_{short}_256.imagenet",
        family="gpt",
        kind="generator",
        config=_GPT_SIZES[size] | config,
        file=f"{_REPOSITORY}:{file}" if file else "",
        licence=_LICENCE,
        metrics={"gfid": gfid, "probe": probe} if file else {},
        sampling=_GPT_SAMPLING,
        tokenizer=f"gigatok_{short}_256.imagenet",
        paper=_PAPER,
        notes=notes,
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
    _gpt("b", "ss", "GPT_B256_e300_VQ_SS.pt", 4.05, 62.6),
    _gpt("b", "sb", "GPT_B256_e300_VQ_SB.pt", 3.83, 62.9),
    _gpt("b", "bl", "GPT_B256_e300_VQ_BL.pt", 3.26, 67.6),
    _gpt("b", "bl_dino_disc", "GPT_B256_e300_VQ_BL_dino_disc.pt", 3.33, 67.7),
    _gpt("b", "xlxxl", "GPT_B256_e300_VQ_XLXXL.pt", 3.15, 72.0),
    _gpt("xl", "bl", "GPT_XL256_e300_VQ_BL.pt", 2.13, 70.6),
    _gpt("xxl", "bl", "GPT_XXL256_e300_VQ_BL.pt", 2.03, 69.4),
    _gpt("xxl", "xlxxl", "GPT_XXL256_e300_VQ_XLXXL.pt", 1.98, 74.0),
    _gpt("l", "bl"),
    _gpt("b", "bl_2d", positions="rotary_2d"),
    ModelCard(
        name="gpt_tiny.emoji",
        family="gpt",
        kind="generator",
        config={
            "codebook_size": [8, 8, 8, 8],
            "num_tokens": 32,
            "num_classes": 10,
            "width": 128,
            "depth": 4,
            "num_heads": 4,
            "init": "local",
            "dropout": 0.0,
        },
        licence="Apache-2.0",
        tokenizer="titok_tiny_32.emoji",
        paper=_PAPER,
        notes="no weights are shipped: `vistok train configs/gpt/tiny.yaml` makes them in minutes",
    ),
)
