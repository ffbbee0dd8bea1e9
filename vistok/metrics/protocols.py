"""Evaluation protocols by name: what a number must state before it can be compared with another.

What the official evaluators do differently, and each of which moves FID: the crop (``center`` or
ADM's ``arc``), rounding reconstructions to 8 bits, and how the Inception network is fed
(torch-fidelity: TensorFlow 1's bilinear resize of 8-bit images; pytorch-fid: half-pixel bilinear of
floats; ADM: its TensorFlow graph).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vistok.errors import ConfigError, nearest

FeaturesName = Literal["inception", "lite0"]


@dataclass(frozen=True)
class Protocol:
    """How reconstructions are evaluated.

    Attributes:
        name: what results call it.
        crop, interpolation: how pictures become square; names of ``vistok.data.transforms``.
        features: the extractor of the Fréchet distance; a name of ``vistok.metrics.features``.
        eight_bit: reconstructions are clamped and rounded to 8 bits before anything is measured.
        split: the data that published numbers were measured on.
        num_images: how many images that is.
        source: where it is from.
    """

    name: str
    crop: str = "center"
    interpolation: str = "bicubic"
    features: FeaturesName = "inception"
    eight_bit: bool = True
    split: str = ""
    num_images: int = 0
    source: str = ""


_PROTOCOLS: dict[str, Protocol] = {}


def register_protocol(protocol: Protocol) -> None:
    """Make a protocol known by its name.

    Raises:
        ConfigError: another one has this name.
    """
    if _PROTOCOLS.get(protocol.name, protocol) != protocol:
        raise ConfigError(f"there is another protocol named {protocol.name!r}; choose a new name")
    _PROTOCOLS[protocol.name] = protocol


def get_protocol(name: str | Protocol) -> Protocol:
    """The protocol of this name; a Protocol is given back as it is.

    Raises:
        ConfigError: unknown name; lists the nearest.
    """
    if isinstance(name, Protocol):
        return name
    if name not in _PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {nearest(name, _PROTOCOLS)}")
    return _PROTOCOLS[name]


def list_protocols() -> list[str]:
    """Names of all protocols, sorted."""
    return sorted(_PROTOCOLS)


register_protocol(
    Protocol(
        name="titok",
        split="ImageNet-1k validation",
        num_images=50_000,
        source="TiTok, arXiv:2406.07550, and its evaluator: torch-fidelity's InceptionV3 of 2015-12-05",
    )
)
register_protocol(
    Protocol(
        name="offline-lite0",
        features="lite0",
        source="vistok's own, for machines without a network; its numbers compare with each other only",
    )
)
