"""Names of models and what is known about each: the cards.

Cards are data (``vistok.cards``); this file finds them, and finds the class of a family. Nothing
heavy is imported before a model is made.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from vistok.errors import VistokError, nearest

# The class of each family that can be built, by its import path.
FAMILIES = MappingProxyType(
    {
        "titok": "vistok.models.titok:TiTok",
        "maskgit_vqgan": "vistok.models.maskgit_vqgan:MaskGitVqgan",
        "flextok": "vistok.models.flextok:FlexTok",
        "kl_vae": "vistok.models.kl_vae:KlVae",
        "gigatok": "vistok.models.gigatok:GigaTok",
        "ldm_kl": "vistok.models.ldm_kl:LdmKl",
        "karl": "vistok.models.karl:Karl",
        "alit": "vistok.models.alit:Alit",
        "digit_ar": "vistok.generate.ar:DigitAR",
        "gpt": "vistok.generate.gpt:Gpt",
        "rar": "vistok.generate.rar:Rar",
        "maskgit": "vistok.generate.maskgit:MaskGit",
        "maskgen": "vistok.generate.maskgen:MaskGen",
        "flexar": "vistok.generate.flexar:FlexAR",
    }
)
CARD_MODULES = (
    "vistok.cards.titok",
    "vistok.cards.onedpiece",
    "vistok.cards.flextok",
    "vistok.cards.gigatok",
    "vistok.cards.karl",
    "vistok.cards.alit",
    "vistok.cards.house",
)
_METRIC_NAMES = {
    "rfid": "rFID",
    "gfid": "gFID",
    "is": "IS",
    "lpips": "LPIPS",
    "fid_mjhq": "FID (MJHQ)",
    "geneval": "GenEval",
}


@dataclass(frozen=True)
class ModelCard:
    """What is known about a named model.

    Attributes:
        name: ``family_size_tokens.dataset``.
        family: the class that builds it; see ``FAMILIES``.
        config: differences from that class's default configuration.
        kind: ``tokenizer`` or ``generator``.
        hub_id: repository on the Hugging Face hub, "" if unpublished.
        file: a single file, ``repository:file``, where it is published that way too.
        embedded: its weights come with vistok, in ``assets/weights/NAME``.
        licence: of the weights, as far as known.
        preprocessing: how its evaluation prepares images.
        metrics: published numbers by name.
        sampling: a generator's published sampling defaults.
        tokenizer: the name of the tokenizer that a generator was trained on.
        paper: its source.
        notes: what a user should know.
    """

    name: str
    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "tokenizer"
    hub_id: str = ""
    file: str = ""
    embedded: bool = False
    licence: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    paper: str = ""
    notes: str = ""

    @property
    def dataset(self) -> str:
        """What it was trained on: the last part of its name, "" for none."""
        return self.name.partition(".")[2]

    @property
    def buildable(self) -> bool:
        """Whether this version of vistok has the family's class."""
        return self.family in FAMILIES


@cache
def cards() -> dict[str, ModelCard]:
    """All cards by name."""
    found: dict[str, ModelCard] = {}
    for module in CARD_MODULES:
        for card in importlib.import_module(module).CARDS:
            if card.name in found:
                raise AssertionError(f"two cards have the name {card.name}")
            found[card.name] = card
    return found


def list_models(pattern: str = "*", *, kind: str | None = None, buildable: bool = True) -> list[str]:
    """Names of registered models.

    Args:
        pattern: a glob, as in ``titok_*`` or ``*.imagenet``.
        kind: only ``tokenizer`` or only ``generator``.
        buildable: leave out published models whose family this version cannot build yet.
    """
    return [
        name
        for name, card in sorted(cards().items())
        if fnmatch.fnmatch(name, pattern) and kind in (None, card.kind) and (card.buildable or not buildable)
    ]


def get_card(name: str) -> ModelCard:
    """The card of a name.

    Raises:
        VistokError: unknown; the message has the nearest names.
    """
    found = cards().get(name)
    if found is None:
        raise VistokError(f"there is no model named {name!r}; {nearest(name, cards())}")
    return found


def model_class(family: str) -> type:
    """The class of a family, imported now.

    Raises:
        VistokError: unknown family.
    """
    if family not in FAMILIES:
        raise VistokError(f"this vistok cannot build the family {family!r}; {nearest(family, FAMILIES)}")
    module, _, attribute = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), attribute)


def markdown_table(*, kind: str = "tokenizer") -> str:
    """The table of buildable models for the README: name, source, published numbers, hub id."""
    lines = ["| model | paper | published | weights |", "|---|---|---|---|"]
    for name in list_models(kind=kind):
        card = get_card(name)
        numbers = ", ".join(f"{_METRIC_NAMES.get(key, key)} {value:g}" for key, value in card.metrics.items())
        weights = f"`{card.hub_id or card.file}`" if card.hub_id or card.file else "none; trains from its configuration"
        weights = "come with vistok" if card.embedded else weights
        lines.append(f"| `{name}` | {card.paper.split(' with ')[0]} | {numbers or '-'} | {weights} |")
    return "\n".join(lines) + "\n"
