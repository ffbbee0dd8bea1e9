"""The classes of ImageNet-1k, by the names of their folders (WordNet's synsets) and in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache


@cache
def imagenet_names() -> dict[str, str]:
    """Folder name -> name in words, in the order of the class numbers: ``n01440764`` is class 0, tench.

    A name is the first of WordNet's synonyms. Two pairs of classes share it: the bird and the machine, ``crane``, which have their
    numbers behind (``crane 134``, ``crane 517``), and ``maillot 638`` and ``maillot 639``.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    first = [info.index_to_description(number).partition(",")[0] for number in range(info.num_classes())]
    shared = {name for name, count in Counter(first).items() if count > 1}
    names = [f"{name} {number}" if name in shared else name for number, name in enumerate(first)]
    return dict(zip(info.label_names(), names, strict=True))


def class_words(classes: Sequence[str]) -> list[str]:
    """Names of classes as a text would have them: those of ImageNet's folders in words, all others as they are."""
    folders = any(re.fullmatch(r"n\d{8}", name) for name in classes)
    words = imagenet_names() if folders else {}
    return [words.get(name, name) for name in classes]
