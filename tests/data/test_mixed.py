"""Several sources as one."""

from __future__ import annotations

import pytest

from vistok.data.sources import open_source
from vistok.errors import DataError


def test_parts_follow_each_other_and_share_classes_by_name():
    emoji, photos = (open_source(spec, split="train") for spec in ("emoji:", "photos:"))
    mixed = open_source("emoji: + 2*photos:", split="train")
    assert len(mixed) == len(emoji) + 2 * len(photos)
    assert mixed.classes == (*emoji.classes, *photos.classes)
    last = len(mixed) - 1
    assert mixed.classes[mixed.label(last)] == photos.classes[photos.label(len(photos) - 1)]
    assert mixed.image(last).tobytes() == photos.image(len(photos) - 1).tobytes()
    assert mixed.caption(3) == emoji.caption(3) and mixed.caption(last) == ""
    assert len({mixed.name(index) for index in range(len(mixed))}) == len(mixed)
    held_out = open_source("emoji: + 2*photos:", split="val")
    assert len(held_out) == len(open_source("emoji:", split="val")) + len(open_source("photos:", split="val"))
    assert open_source("random:20 + random:40").classes == open_source("random:20").classes


@pytest.mark.parametrize("spec", ["emoji: + 0*photos:", "emoji: + nothing:", "emoji: + "])
def test_bad_parts(spec):
    with pytest.raises(DataError):
        open_source(spec)
