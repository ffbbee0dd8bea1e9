"""Cards of One-D-Piece: TiTok with tail drop, so that any prefix of its 256 tokens can be decoded.

rFID: ImageNet validation, 50,000 images, 256 pixels, all 256 tokens.
"""

from __future__ import annotations

from vistok.cards.preprocessing import CENTER_256_BICUBIC
from vistok.registry import ModelCard

_PAPER = "One-D-Piece, arXiv:2501.10064"
_LICENCE = "Apache-2.0 by its README (the weights' own tag is not checked)"
_NUM_TOKENS = 256


def _tokenizer(size: str, rfid: float | None) -> ModelCard:
    """The published tokenizer of a size; without a number, its first stage."""
    letter, published = size[0], rfid is not None
    return ModelCard(
        name=f"onedpiece_{letter}256.imagenet" if published else f"onedpiece_{letter}256_stage1.imagenet",
        family="titok",
        config={
            "encoder": size,
            "decoder": size,
            "num_tokens": _NUM_TOKENS,
            "head": "vqgan" if published else "proxy",
            "legacy_layout": True,
            "tail_drop": "uniform",
        },
        hub_id=f"turing-motors/One-D-Piece-{letter.upper()}-256" if published else "",
        licence=_LICENCE,
        preprocessing=CENTER_256_BICUBIC,
        metrics={"rfid": rfid} if published else {},
        paper=_PAPER,
        notes="any prefix of 1 to 256 tokens can be decoded"
        if published
        else "the first stage of the two-stage recipe, before the pixel decoder; not published as weights",
    )


def _generator(size: str, scale: float, temperature: float, gfid: float) -> ModelCard:
    letter = size[0]
    return ModelCard(
        name=f"maskgit_onedpiece_{letter}256.imagenet",
        family="maskgit",
        kind="generator",
        config={"num_tokens": _NUM_TOKENS},
        hub_id=f"turing-motors/MaskGIT_One-D-Piece-{letter.upper()}-256",
        licence=_LICENCE,
        metrics={"gfid": gfid},
        sampling={
            "steps": 16,
            "randomize_temperature": temperature,
            "cfg_scale": scale,
            "cfg_schedule": "power_cosine",
            "cfg_power": 3.0,
        },
        tokenizer=f"onedpiece_{letter}256.imagenet",
        paper=_PAPER,
    )


CARDS = (
    _tokenizer("small", 1.48),
    _tokenizer("base", 1.11),
    _tokenizer("large", 1.08),
    _tokenizer("small", None),
    _tokenizer("base", None),
    _tokenizer("large", None),
    _generator("small", 12.5, 3.0, 2.67),
    _generator("base", 8.5, 2.5, 2.70),
    _generator("large", 5.5, 3.0, 2.35),
)
