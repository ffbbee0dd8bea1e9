"""Cards of FlexTok, and of the autoencoders and generators published with it.

rFID: ImageNet validation, 256 pixels, 256 tokens. gFID: the paper's class-conditional model on 32 tokens.
Both are taken from secondary tables.
"""

from __future__ import annotations

from typing import Any

from vistok.registry import ModelCard

_PAPER = "FlexTok, arXiv:2502.13967"
_LICENCE = "research only (Apple model licence: no commercial use)"
_PREPROCESSING = {
    "image_size": 256,
    "crop": "center",
    "interpolation": "bilinear",
    "range": [0.0, 1.0],
    "note": "shorter edge to 256 (antialias), centre crop; brought to [-1, 1] inside",
}
_UNVERIFIED = (
    "not verified against the published configuration: max_timestep, scaling_factor, null_probability and the noise "
    "levels of training; from_pretrained reads them from the file"
)
_UNVERIFIED_BLOCKS = (
    "not verified against the published configuration: MLP, norms, biases and positions; from_pretrained reads them "
    "from the file"
)


def _flextok(encoder: int, decoder: int, data: str, metrics: dict[str, float], notes: str = "") -> ModelCard:
    short = {"imagenet": "in1k"}.get(data, data)
    return ModelCard(
        name=f"flextok_d{encoder}_d{decoder}.{data}",
        family="flextok",
        config={
            "encoder": {"width": 64 * encoder, "depth": encoder},
            "decoder": {"width": 64 * decoder, "depth": decoder},
        },
        hub_id=f"EPFL-VILAB/flextok_d{encoder}_d{decoder}_{short}",
        licence=_LICENCE,
        preprocessing=_PREPROCESSING,
        metrics=metrics,
        paper=_PAPER,
        notes="; ".join(part for part in (notes, _UNVERIFIED) if part),
    )


def _autoencoder(channels: int) -> ModelCard:
    repository = f"EPFL-VILAB/flextok_vae_c{channels}"
    return ModelCard(
        name=f"flextok_vae_c{channels}.dfn",
        family="kl_vae",
        config={"network": {"latent_channels": channels}},
        hub_id=repository,
        file=f"{repository}:diffusion_pytorch_model.safetensors",
        licence=_LICENCE,
        preprocessing=_PREPROCESSING,
        paper=_PAPER,
        notes="a KL autoencoder with a latent map of an eighth of the size; scaling_factor not verified",
    )


def _flexar(
    name: str, hub: str, depth: int, sampling: dict[str, float], tokenizer: str, *, notes: str = "", **config: Any
) -> ModelCard:
    attention = {"num_heads": depth}
    return ModelCard(
        name=name,
        family="flexar",
        kind="generator",
        config={"width": 64 * depth, "depth": depth, "attention": attention} | config,
        hub_id=f"EPFL-VILAB/{hub}",
        licence=_LICENCE,
        sampling=sampling,
        tokenizer=tokenizer,
        paper=_PAPER,
        notes="; ".join(part for part in (notes, _UNVERIFIED_BLOCKS) if part),
    )


def _from_text(hub: str, depth: int, tokenizer: str = "flextok_d18_d28.dfn", **options: Any) -> ModelCard:
    name = hub.removesuffix("-T2I").lower().replace("-", "_")
    reading = {"text": {}, "reading": {"num_heads": depth}}
    return _flexar(f"{name}.text", hub, depth, {"cfg_scale": 3.0}, tokenizer, **reading, **options)


CARDS = (
    _flextok(12, 12, "imagenet", {"rfid": 4.20, "gfid": 3.83}, "its gFID is quoted from memory"),
    _flextok(18, 18, "imagenet", {"rfid": 1.61, "gfid": 2.02}),
    _flextok(18, 28, "imagenet", {"rfid": 1.45, "gfid": 1.86}),
    _flextok(18, 28, "dfn", {}, "trained on DFN"),
    _autoencoder(4),
    _autoencoder(8),
    _autoencoder(16),
    _from_text("FlexAR-113M-T2I", 12),
    _from_text("FlexAR-382M-T2I", 18),
    _from_text("FlexAR-1B-T2I", 26),
    _from_text("FlexAR-3B-T2I", 36),
    _from_text(
        "GridAR-3B-T2I",
        36,
        "",
        codebook_size=64000,
        notes="over a tokenizer of a 16 x 16 grid, which vistok does not have",
    ),
    _flexar(
        "flexar_1b.imagenet",
        "FlexAR-1B-C2I",
        26,
        {"cfg_scale": 1.5},
        "flextok_d18_d28.imagenet",
        notes="its size and tokenizer are not verified",
        num_classes=1000,
    ),
    ModelCard(
        name="flexar_tiny.emoji",
        family="flexar",
        kind="generator",
        config={
            "codebook_size": [8, 8, 8, 8],
            "num_tokens": 32,
            "num_classes": 10,
            "width": 128,
            "depth": 4,
            "attention": {"num_heads": 4},
        },
        licence="Apache-2.0",
        tokenizer="titok_tiny_32.emoji",
        paper=_PAPER,
        notes="no weights are shipped: `vistok train configs/flexar/tiny.yaml` makes them in minutes",
    ),
)
