"""Cards of TiTok, TA-TiTok, MaskGIT-VQGAN and of the generators published with them.

rFID: ImageNet validation, 50,000 images, 256 pixels. gFID: 50,000 samples, ADM evaluator. The two
use different references and cannot be compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.cards.preprocessing import CENTER_256_BICUBIC
from vistok.registry import ModelCard

_TITOK_PAPER = "TiTok, arXiv:2406.07550"
_TATITOK_PAPER = "TA-TiTok and MaskGen, arXiv:2501.07730"
_RAR_PAPER = "RAR, arXiv:2411.00776"
_LICENCE = "Apache-2.0"


def _two_stage(size: str, tokens: int, rfid: float, notes: str = "") -> ModelCard:
    letter = size[0]
    return ModelCard(
        name=f"titok_{letter}{tokens}.imagenet",
        family="titok",
        config={"encoder": size, "decoder": size, "num_tokens": tokens, "head": "vqgan", "legacy_layout": True},
        hub_id=f"yucornetto/tokenizer_titok_{letter}{tokens}_imagenet",
        file=f"fun-research/TiTok:tokenizer_titok_{letter}{tokens}.bin",
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC,
        metrics={"rfid": rfid},
        paper=_TITOK_PAPER,
        notes=notes,
    )


def _stage_one(size: str, tokens: int) -> ModelCard:
    letter = size[0]
    return ModelCard(
        name=f"titok_{letter}{tokens}_stage1.imagenet",
        family="titok",
        config={"encoder": size, "decoder": size, "num_tokens": tokens, "head": "proxy", "legacy_layout": True},
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC,
        paper=_TITOK_PAPER,
        notes="the first stage of the two-stage recipe, before the pixel decoder; not published as weights",
    )


def _single_stage(sizes: tuple[str, str], tokens: int, quantizer: str, rfid: float) -> ModelCard:
    short = f"{sizes[0][0]}{sizes[1][0]}{tokens}"
    suffix = "vq8k" if quantizer == "vq" else "vae_c16"
    return ModelCard(
        name=f"titok_{short}_{suffix}.imagenet",
        family="titok",
        config={"encoder": sizes[0], "decoder": sizes[1], "num_tokens": tokens, **_bottleneck(quantizer)},
        hub_id=f"yucornetto/tokenizer_titok_{short}_{suffix}_imagenet",
        file=f"fun-research/TiTok:{'tokenizer_' if quantizer == 'vq' else ''}titok_{short}_{suffix}.bin",
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC,
        metrics={"rfid": rfid},
        paper=_TITOK_PAPER,
    )


def _text_aware(sizes: tuple[str, str], tokens: int, quantizer: str, rfid: float, score: float) -> ModelCard:
    short = f"{sizes[0][0]}{sizes[1][0]}{tokens}_{'vq' if quantizer == 'vq' else 'vae'}"
    return ModelCard(
        name=f"tatitok_{short}.datacomp",
        family="titok",
        config={
            "encoder": sizes[0],
            "decoder": sizes[1],
            "num_tokens": tokens,
            "text_length": 77,
            "text_dim": 768,
            **_bottleneck(quantizer),
        },
        hub_id=f"turkeyju/tokenizer_tatitok_{short}",
        file=f"fun-research/TA-TiTok:tatitok_{short}.bin",
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC | {"caption": "A photo of a {class name}."},
        metrics={"rfid": rfid, "is": score},
        paper=_TATITOK_PAPER,
        notes="decodes with text features of open_clip ViT-L-14-336 (openai): vistok.models.text.ClipTextFeatures",
    )


def _bottleneck(quantizer: str) -> dict[str, Any]:
    if quantizer == "vq":
        return {"quantizer": "vq", "codebook_size": 8192, "code_dim": 64, "l2_norm": False}
    return {"quantizer": "gaussian", "code_dim": 16}


def _masked(
    tokens: str, network: str, steps: int, guidance: Mapping[str, Any], temperature: float, gfid: float
) -> ModelCard:
    config: dict[str, Any] = {"num_tokens": int(tokens[1:])}
    if network == "uvit":
        config |= {"network": network, "width": 1024, "depth": 20, "hidden_width": 4096}
    return ModelCard(
        name=f"maskgit_titok_{tokens}.imagenet",
        family="maskgit",
        kind="generator",
        config=config,
        hub_id=f"yucornetto/generator_titok_{tokens}_imagenet",
        file=f"fun-research/TiTok:generator_titok_{tokens}.bin",
        licence=_LICENCE,
        metrics={"gfid": gfid},
        # The script that the figures come from anneals the logits; the released demonstration does not.
        sampling={"steps": steps, "randomize_temperature": temperature, "anneal": True, **guidance},
        tokenizer=f"titok_{tokens}.imagenet",
        paper=_TITOK_PAPER,
    )


def _rar(size: str, scale: float, power: float, temperature: float, gfid: float) -> ModelCard:
    sizes = {"b": (768, 24, 3072), "l": (1024, 24, 4096), "xl": (1280, 32, 5120), "xxl": (1408, 40, 6144)}
    width, depth, hidden_width = sizes[size]
    return ModelCard(
        name=f"rar_{size}.imagenet",
        family="rar",
        kind="generator",
        file=f"yucornetto/RAR:rar_{size}.bin",
        licence=_LICENCE,
        metrics={"gfid": gfid},
        config={"width": width, "depth": depth, "hidden_width": hidden_width}
        | {"spare_positions": 1022, "spare_slots": 98},
        sampling={
            "cfg_scale": scale,
            "cfg_schedule": "power_cosine",
            "cfg_power": power,
            "temperature": temperature,
        },
        tokenizer="maskgit_vqgan.imagenet",
        paper=_RAR_PAPER,
    )


def _maskgen(size: str, kind: str, fid: float, geneval: float) -> ModelCard:
    width, depth = {"l": (1024, 16), "xl": (1280, 20)}[size]
    config: dict[str, Any] = {"kind": kind, "width": width, "depth": depth}
    if kind == "vq":
        config |= {"num_tokens": 128, "codebook_size": 8192, "spare_rows": 1001}
        # Published as c + w * (c - u), where w goes from 1 to 12 by a cosine.
        guidance = {"cfg_scale": 13.0, "cfg_schedule": "power_cosine", "cfg_floor": 2.0}
        sampling = {"steps": 16, "randomize_temperature": 2.0, "anneal": True, **guidance}
    else:
        config |= {"num_tokens": 32, "codebook_size": None, "code_dim": 16, "head_width": width, "head_depth": 8}
        sampling = {"steps": 32, "diffusion_steps": 100, "cfg_scale": 3.0, "cfg_schedule": "linear"}
    return ModelCard(
        name=f"maskgen_{kind}_{size}.text",
        family="maskgen",
        kind="generator",
        config=config,
        hub_id=f"turkeyju/generator_maskgen_{kind}_{size}",
        file=f"fun-research/TA-TiTok:maskgen_{kind}_{size}.bin",
        licence=_LICENCE,
        metrics={"fid_mjhq": fid, "geneval": geneval},
        sampling=sampling,
        tokenizer="tatitok_bl128_vq.datacomp" if kind == "vq" else "tatitok_bl32_vae.datacomp",
        paper=_TATITOK_PAPER,
        notes="reads captions by open_clip ViT-L-14-336 (openai); the tokenizer decodes with features of the same captions",
    )


CARDS = (
    _two_stage("large", 32, 2.21),
    _two_stage("base", 64, 1.70),
    _two_stage(
        "small", 128, 1.71, "users have measured rFID 3.91 with the published weights (upstream issue 105, unresolved)"
    ),
    _stage_one("large", 32),
    _stage_one("base", 64),
    _stage_one("small", 128),
    _single_stage(("base", "large"), 64, "vq", 2.06),
    _single_stage(("base", "large"), 128, "vq", 1.49),
    _single_stage(("small", "large"), 256, "vq", 1.03),
    _single_stage(("large", "large"), 32, "gaussian", 1.61),
    _single_stage(("base", "large"), 64, "gaussian", 1.25),
    _single_stage(("base", "large"), 128, "gaussian", 0.84),
    _text_aware(("base", "large"), 32, "vq", 3.95, 219.6),
    _text_aware(("base", "large"), 64, "vq", 2.43, 218.8),
    _text_aware(("base", "large"), 128, "vq", 1.53, 222.8),
    _text_aware(("base", "large"), 32, "gaussian", 1.53, 222.0),
    _text_aware(("base", "large"), 64, "gaussian", 1.47, 220.7),
    _text_aware(("small", "large"), 128, "gaussian", 0.90, 227.7),
    ModelCard(
        name="maskgit_vqgan.imagenet",
        family="maskgit_vqgan",
        file="fun-research/TiTok:maskgit-vqgan-imagenet-f16-256.bin",
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC,
        paper="MaskGIT, arXiv:2202.04200",
        notes="a 16x16 grid tokenizer: the proxy and pixel decoder of two-stage TiTok, and the tokenizer of RAR",
    ),
    # Published as c + w * (c - u), where w rises from 0: to 4.5, and to 3.
    _masked("l32", "bert", 8, {"cfg_scale": 5.5, "cfg_schedule": "linear"}, 9.5, 2.77),
    _masked("b64", "bert", 8, {"cfg_scale": 4.0, "cfg_schedule": "linear"}, 11.0, 2.48),
    _masked("s128", "uvit", 64, {"cfg_scale": 6.9, "cfg_schedule": "power_cosine", "cfg_power": 3.0}, 2.8, 1.97),
    _rar("b", 16.0, 2.75, 1.0, 1.95),
    _rar("l", 15.5, 2.5, 1.02, 1.70),
    _rar("xl", 6.9, 1.5, 1.02, 1.50),
    _rar("xxl", 8.0, 1.2, 1.02, 1.48),
    ModelCard(
        name="rar_tiny.emoji",
        family="rar",
        kind="generator",
        config={
            "codebook_size": [8, 8, 8, 8],
            "num_tokens": 32,
            "num_classes": 10,
            "width": 128,
            "depth": 4,
            "num_heads": 4,
            "hidden_width": 512,
            "init": "local",
            "dropout": 0.0,
            "anneal_start": 0.1,
            "anneal_end": 0.3,
        },
        licence="Apache-2.0",
        tokenizer="titok_tiny_32.emoji",
        paper=_RAR_PAPER,
        notes="no weights are shipped: `vistok train configs/rar/tiny.yaml` makes them in minutes",
    ),
    ModelCard(
        name="maskgit_tiny.emoji",
        family="maskgit",
        kind="generator",
        config={
            "codebook_size": [8, 8, 8, 8],
            "num_tokens": 32,
            "num_classes": 10,
            "width": 128,
            "depth": 4,
            "num_heads": 4,
            "hidden_width": 512,
            "dropout": 0.0,
        },
        licence="Apache-2.0",
        sampling={"steps": 16, "randomize_temperature": 1.0},
        tokenizer="titok_tiny_32.emoji",
        paper=_TITOK_PAPER,
        notes="no weights are shipped: `vistok train configs/maskgit/tiny.yaml` makes them in minutes",
    ),
    _maskgen("l", "vq", 7.74, 0.53),
    _maskgen("xl", "vq", 7.51, 0.57),
    _maskgen("l", "kl", 7.24, 0.52),
    _maskgen("xl", "kl", 6.53, 0.55),
)
