"""Cards of vistok's own small models, which train on a CPU on the embedded data."""

from __future__ import annotations

from vistok.registry import ModelCard

_PREPROCESSING = {"image_size": 64, "crop": "center", "interpolation": "bicubic", "range": [0.0, 1.0]}
_TINY = {
    "image_size": 64,
    "patch_size": 16,
    "decoder_patch_size": 16,
    "encoder": {"width": 128, "depth": 2, "num_heads": 4},
    "decoder": {"width": 128, "depth": 3, "num_heads": 4},
    "quantizer": "fsq",
    "code_dim": 4,
    "levels": [8, 8, 8, 8],
    "head": "pixels",
    "init": "linear",
}
_SHIPPED = {
    "image_size": 64,
    "quantizer": "fsq",
    "code_dim": 4,
    "levels": [8, 8, 8, 8],
    "init": "progressive",
}

CARDS = (
    ModelCard(
        name="titok_tiny_32.emoji",
        family="titok",
        config=_TINY | {"num_tokens": 32, "tail_drop": "log_uniform"},
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="TiTok (arXiv:2406.07550) with FSQ (arXiv:2309.15505) and tail drop (arXiv:2501.10064)",
        notes="ordered; no weights are shipped: `make demo` trains it in about two minutes",
    ),
    ModelCard(
        name="onedpiece_tiny_64.photos",
        family="titok",
        config=_TINY | {"num_tokens": 64, "tail_drop": "uniform"},
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="One-D-Piece (arXiv:2501.10064) with FSQ (arXiv:2309.15505)",
        notes="ordered; no weights are shipped: `vistok train configs/onedpiece/tiny.yaml` makes them in minutes",
    ),
    ModelCard(
        name="flextok_tiny_64.photos",
        family="flextok",
        config={
            "vae": "none",
            "grid_size": [8, 8],
            "patch_size": 8,
            "num_tokens": 64,
            "levels": [8, 8, 8, 8],
            "bound": "clamp",
            "init": "linear",
            "encoder": {"width": 128, "depth": 3, "head_dim": 32},
            "decoder": {"width": 128, "depth": 4, "head_dim": 32},
            "max_timestep": 1.0,
            "null_probability": 0.1,
            "sampling": {"steps": 2, "guidance": 1.0, "apg": False},
        },
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="FlexTok (arXiv:2502.13967) on pixels",
        notes="ordered; no weights are shipped: `vistok train configs/flextok/tiny.yaml` makes them in minutes",
    ),
    ModelCard(
        name="karl_tiny_64.photos",
        family="karl",
        config={
            "image_size": 64,
            "patch_size": 16,
            "base": "pixels",
            "encoder": {"width": 128, "depth": 2, "num_heads": 4},
            "decoder": {"width": 128, "depth": 3, "num_heads": 4},
            "num_tokens": 64,
            "budget": 64,
            "train_counts": [1, 64, 1],
            "quantizer": "fsq",
            "levels": [8, 8, 8, 8],
            "code_dim": 4,
            "kept": "prefix",
            "init": "linear",
        },
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="KARL (arXiv:2507.07995) with FSQ (arXiv:2309.15505) on pixels",
        notes="as many tokens as a wanted error needs; no weights are shipped: `vistok train configs/karl/tiny.yaml` makes "
        "them in minutes",
    ),
    ModelCard(
        name="vistok_ordered",
        family="titok",
        config=_SHIPPED
        | {
            "decoder_patch_size": 8,
            "decoder": {"width": 192, "depth": 6, "num_heads": 6},
            "num_tokens": 256,
            "tail_drop": "log_uniform",
        },
        embedded=True,
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="TiTok's decoder (arXiv:2406.07550) and One-D-Piece's tail drop (arXiv:2501.10064) over a progressive linear code",
        notes="ordered: any of the first 1 to 256 tokens are a picture",
    ),
    ModelCard(
        name="vistok_adaptive",
        family="karl",
        config=_SHIPPED
        | {
            "patch_size": 16,
            "base": "pixels",
            "encoder": {"width": 128, "depth": 2, "num_heads": 4},
            "decoder": {"width": 128, "depth": 4, "num_heads": 4},
            "num_tokens": 128,
            "budget": 128,
            "train_counts": [1, 128, 1],
            "kept": "prefix",
        },
        embedded=True,
        licence="Apache-2.0",
        preprocessing=_PREPROCESSING,
        paper="KARL (arXiv:2507.07995) over a progressive linear code",
        notes="as many tokens, 0 to 128, as a wanted error needs, found in one pass",
    ),
    ModelCard(
        name="vistok_writer",
        family="digit_ar",
        kind="generator",
        config={"num_tokens": 64, "width": 192, "depth": 4, "num_heads": 6, "max_words": 2048, "text_share": 0.7},
        sampling={"temperature": 0.7, "cfg_scale": 1.5},
        embedded=True,
        licence="Apache-2.0",
        tokenizer="vistok_ordered",
        notes="emoji from a category or a text: the first 64 tokens",
    ),
    ModelCard(
        name="digit_ar_tiny.emoji",
        family="digit_ar",
        kind="generator",
        config={"max_words": 256},
        licence="Apache-2.0",
        tokenizer="titok_tiny_32.emoji",
        notes="of classes and texts; no weights are shipped: `make demo` trains it in about two minutes",
    ),
)
