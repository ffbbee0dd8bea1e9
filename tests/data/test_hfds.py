"""Hugging Face data sets through timm's reader, from a local folder."""

from __future__ import annotations

import pytest
from PIL import Image

from vistok.data import NoValSplitError, open_source
from vistok.errors import DataError


@pytest.fixture
def local_set(tmp_path, monkeypatch):
    """A local set of parquet files with the columns img, fine and text, in two splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["cat", "dog"]), "text": datasets.Value("string")}
    )
    for split, colors in (("train", ["red", "blue", "lime"]), ("validation", ["black"])):
        rows = {
            "img": [Image.new("RGB", (8, 8), color) for color in colors],
            "fine": [index % 2 for index in range(len(colors))],
            "text": [f"a {color} square" for color in colors],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_local_set(local_set):
    spec = f"hfds:{local_set}?image=img&label=fine&caption=text"
    train, val, whole = (open_source(spec, split=split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(whole)) == (3, 1, 4)
    assert train.classes == val.classes == ("cat", "dog")
    assert [train.label(i) for i in range(3)] == [0, 1, 0]
    assert train.image(1).getpixel((0, 0)) == (0, 0, 255) and train.caption(1) == "a blue square"
    assert train.name(0).endswith("set/train/00000000") and train.listing_hash() != val.listing_hash()
    # without labels and captions
    plain = open_source(f"hfds:{local_set}?image=img&split=train[:2]")
    assert (len(plain), plain.classes, plain.label(0), plain.caption(0)) == (2, (), -1, "")
    with pytest.raises(NoValSplitError, match="names one split"):
        open_source(f"hfds:{local_set}?image=img&split=train", split="val")


def test_wrong_columns_are_named(local_set):
    with pytest.raises(DataError, match="no column 'image' for the image, but img, fine, text"):
        open_source(f"hfds:{local_set}", split="train")
    for option in ("caption", "label"):
        with pytest.raises(DataError, match=f"no column 'txt'.*{option}="):
            open_source(f"hfds:{local_set}?image=img&{option}=txt", split="train")


def test_refuses_before_any_network():
    with pytest.raises(DataError, match="names no data set"):
        open_source("hfds:?split=train")
    with pytest.raises(DataError, match="did you mean label"):
        open_source("hfds:a/b?labels=fine")
