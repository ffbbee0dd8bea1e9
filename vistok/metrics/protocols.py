"""Evaluation protocols by name: what a number must state before it can be compared with another.

What the official evaluators do differently, and each of which moves FID: the crop (``center`` or
ADM's ``arc``), rounding to 8 bits, and how the Inception network is fed (torch-fidelity and ADM: TensorFlow 1's
bilinear resize of 8-bit images; pytorch-fid: half-pixel bilinear of floats; clean-fid: Pillow's bicubic, antialiased, in float).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from vistok.config import load_config
from vistok.errors import ConfigError, nearest

FeaturesName = Literal["inception", "lite0", "dinov2", "clip"]
Resize = Literal["tf1_bilinear", "bilinear", "pil_bicubic", "own"]
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"


@dataclass(frozen=True)
class Protocol:
    """How images are evaluated. A changed copy has another name: ``get_protocol("adm-50k").changed("mine", crop="arc")``.

    Attributes:
        name: what results call it.
        crop, interpolation: how pictures become square; names of ``vistok.data.transforms``.
        features: the extractor of the set's metrics; a name of ``vistok.metrics.features``.
        resize: how images come to the network's size: ``tf1_bilinear`` (TensorFlow 1, of 8-bit images), ``bilinear`` (half-pixel,
            without antialias), ``pil_bicubic`` (Pillow's, antialiased, in float), or the network's ``own``.
        weights, weights_hash: the file of the network's weights, and how its SHA-256 begins; "" where any will do.
        eight_bit: images are clamped and rounded to 8 bits before anything is measured.
        split: the data that published numbers were measured on.
        reference: what a set of samples is compared with; the file's name where it is one.
        reference_hash: how that file's SHA-256 begins; "" where it is not known.
        num_images: how many images are evaluated.
        is_splits, is_shuffle: parts of the inception score, and whether images are put into a random order first.
        neighbours: k of precision and recall.
        neighbour_images: reference images of precision and recall; 0 takes all.
        clip_model, clip_prefix: of CLIPScore: open_clip's names, ``ARCHITECTURE:WEIGHTS`` (without weights: random ones), and
            what is put before every text.
        source: where it is from.
    """

    name: str
    crop: str = "center"
    interpolation: str = "bicubic"
    features: FeaturesName = "inception"
    resize: Resize = "tf1_bilinear"
    weights: str = ""
    weights_hash: str = ""
    eight_bit: bool = True
    split: str = ""
    reference: str = ""
    reference_hash: str = ""
    num_images: int = 0
    is_splits: int = 10
    is_shuffle: bool = True
    neighbours: int = 3
    neighbour_images: int = 0
    clip_model: str = "ViT-B-32:openai"
    clip_prefix: str = "A photo depicts "
    source: str = ""

    def __post_init__(self) -> None:
        for name, kind in (("features", FeaturesName), ("resize", Resize)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if self.is_splits < 1 or self.neighbours < 1 or self.neighbour_images < 0:
            raise ConfigError("is_splits and neighbours are 1 or more, neighbour_images 0 (all) or more")

    def changed(self, name: str, **changes: Any) -> Protocol:
        """A copy with some of it changed, under a name of its own.

        Raises:
            ConfigError: the name is another protocol's, or something that a protocol does not have.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in fields:
                raise ConfigError(f"a protocol has no {key!r}; {nearest(key, fields)}")
        copy = dataclasses.replace(self, **{"source": f"{self.name}, changed", **changes}, name=name)
        if name == self.name or _PROTOCOLS.get(name, copy) != copy:
            raise ConfigError(f"a changed protocol has a new name; {name!r} is taken")
        return copy

    def lines(self) -> list[str]:
        """All of it as YAML, a line each: written to a file, changed, and with a new name, ``get_protocol`` reads it."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, width=1000).splitlines()


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
    """The protocol of this name, or of a file ``*.yaml`` as ``Protocol.lines`` writes it; a Protocol is given back as it is.

    Raises:
        ConfigError: unknown name; lists the nearest. A file that is no protocol, or has another one's name.
    """
    if isinstance(name, Protocol):
        return name
    if name.endswith((".yaml", ".yml")):
        found = load_config(Protocol, name)
        if _PROTOCOLS.get(found.name, found) != found:
            raise ConfigError(f"{name}: a changed protocol has a new name; {found.name!r} is taken")
        return found
    if name not in _PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {nearest(name, _PROTOCOLS)}")
    return _PROTOCOLS[name]


def list_protocols() -> list[str]:
    """Names of all protocols, sorted."""
    return sorted(_PROTOCOLS)


_FIDELITY = Protocol(
    name="torch-fidelity",
    weights=_INCEPTION_FILE,
    weights_hash="6726825d",
    source="torch-fidelity 0.3 and 0.4, as it comes",
)
_VALIDATION = {"split": "ImageNet-1k validation", "num_images": 50_000}

for _protocol in (
    _FIDELITY,
    _FIDELITY.changed(
        "titok",
        **_VALIDATION,
        source="TiTok, arXiv:2406.07550, and its evaluator: torch-fidelity's InceptionV3 of 2015-12-05",
    ),
    _FIDELITY.changed(
        "imagenet256-val",
        crop="arc",
        interpolation="bicubic",
        **_VALIDATION,
        reference="the same images, cropped by ADM's rule",
        source="rFID as GigaTok, FlexTok and most tokenizers since ADM crop it",
    ),
    _FIDELITY.changed(
        "adm-50k",
        crop="arc",
        reference=_ADM_REFERENCE,
        num_images=50_000,
        is_shuffle=False,
        neighbour_images=10_000,
        source="ADM, arXiv:2105.05233: the evaluator of guided-diffusion; samples in the order they were written",
    ),
    _FIDELITY.changed(
        "pytorch-fid",
        resize="bilinear",
        eight_bit=True,
        source="pytorch-fid 0.3: the same network, fed by a half-pixel bilinear resize",
    ),
    _FIDELITY.changed(
        "clean-fid",
        resize="pil_bicubic",
        source="clean-fid, arXiv:2104.11222, mode clean: the same network, fed by an antialiased bicubic resize",
    ),
    Protocol(
        name="offline-lite0",
        features="lite0",
        resize="own",
        source="vistok's own, for machines without a network; its numbers compare with each other only",
    ),
):
    register_protocol(_protocol)
