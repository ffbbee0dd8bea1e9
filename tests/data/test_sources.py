"""Sources: the embedded sets, folders and made-up pictures; what users get wrong in a spec."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from vistok.data import ImageSource, NoValSplitError, asset_path, open_source
from vistok.errors import DataError


def _picture(path, color="red", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.mark.parametrize(
    ("spec", "count", "classes"),
    [("emoji:", 1911, 10), ("emoji:Smileys & Emotion", 169, 16), ("photos:", 228, 10), ("photos:animals", 24, 1)],
)
def test_embedded_sets(spec, count, classes):
    whole, train, val = (open_source(spec, split=split) for split in ("all", "train", "val"))
    assert isinstance(whole, ImageSource)
    assert len(whole) == count and whole.num_classes == classes and whole.spec == spec
    names = [{source.name(index) for index in range(len(source))} for source in (whole, train, val)]
    assert len(names[0]) == count
    assert names[1] | names[2] == names[0] and not names[1] & names[2]
    assert 0.08 < len(val) / count < 0.12 or count < 200  # small parts vary
    assert train.classes == val.classes == whole.classes
    assert {whole.label(index) for index in range(count)} == set(range(classes))
    assert len({source.listing_hash() for source in (whole, train, val)}) == 3
    assert open_source(spec).listing_hash() == whole.listing_hash()


def test_the_held_out_part_is_fixed():
    # Once and for all: a changed rule would let trained models see what they are tested on.
    assert len(open_source("emoji:", split="val")) == 218
    assert len(open_source("photos:", split="val")) == 22
    assert open_source("emoji:", split="val").listing_hash() == EMOJI_VAL
    assert open_source("photos:", split="val").listing_hash() == PHOTOS_VAL


EMOJI_VAL = "240fa7fc28f22dc3b9efa95a9577e3e74c340802ac1b361d87e670d9b136bb1d"
PHOTOS_VAL = "33119a2eb676d05f479b856ea03b37238ae7621ef9bfe4066930958f828de188"


def test_emoji_pictures_and_captions():
    source = open_source("emoji:")
    index = next(index for index in range(len(source)) if source.name(index) == "1F34E")
    assert source.caption(index) == "red apple"
    assert source.classes[source.label(index)] == "Food & Drink"
    image = source.image(index)
    assert image.size == (64, 64) and image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = image.getpixel((32, 40))
    assert red > 150 and red > 2 * max(green, blue)
    within = open_source("emoji:Food & Drink")
    place = next(place for place in range(len(within)) if within.name(place) == "1F34E")
    assert within.classes[within.label(place)] == "food-fruit"
    assert np.array_equal(within.image(place), image)


def test_every_photo_opens():
    source = open_source("photos:")
    assert all(16 <= min(source.image(index).size) <= 256 for index in range(len(source)))


def test_assets_carry_their_licences():
    assert "Copyright Google LLC" in asset_path("emoji/LICENSE").read_text()
    assert "CC0" in asset_path("photos/LICENSE.md").read_text()
    with pytest.raises(DataError, match=r"nothing\.bin"):
        asset_path("nothing.bin")


def test_folder_classes_captions_and_strangers(tmp_path):
    for name in ("cat/b.png", "cat/a.JPG", "dog/deep/er/c.webp", ".hidden/x.png", "cat/.y.png"):
        _picture(tmp_path / name)
    (tmp_path / "cat" / "b.txt").write_text("a red cat\n")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("a,b")
    source = open_source(f"folder:{tmp_path}")
    assert [source.name(i) for i in range(len(source))] == ["cat/a.JPG", "cat/b.png", "dog/deep/er/c.webp"]
    assert source.classes == ("cat", "dog") and [source.label(i) for i in range(3)] == [0, 0, 1]
    assert [source.caption(i) for i in range(3)] == ["", "a red cat", ""]
    assert source.image(2).size == (8, 8)
    with pytest.raises(NoValSplitError, match="has no 'val' part"):
        open_source(f"folder:{tmp_path}", split="val")
    assert len(open_source(f"folder:{tmp_path}", split="train")) == 3


def test_folder_without_classes_and_loose_pictures(tmp_path, caplog):
    _picture(tmp_path / "a.png")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == () and source.label(0) == -1 and not caplog.records
    _picture(tmp_path / "dog" / "b.png")
    source = open_source(f"folder:{tmp_path}")
    assert [source.label(i) for i in range(2)] == [-1, 0]
    assert "1 pictures lie outside" in caplog.text


def test_folder_in_parts_agrees_on_class_numbers(tmp_path):
    for name in ("train/ant/1.png", "train/cat/2.png", "val/bee/3.png", "val/cat/4.png", "test/5.png"):
        _picture(tmp_path / name)
    train, val, whole = (open_source(f"folder:{tmp_path}", split=split) for split in ("train", "val", "all"))
    assert train.classes == val.classes == whole.classes == ("ant", "bee", "cat")
    assert [train.label(i) for i in range(2)] == [0, 2] and [val.label(i) for i in range(2)] == [1, 2]
    assert [whole.name(i) for i in range(4)] == sorted(
        ["train/ant/1.png", "train/cat/2.png", "val/bee/3.png", "val/cat/4.png"]
    )


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/1.png", "bus/2.png"):
        _picture(tmp_path / name)
    assert open_source(f"folder:{tmp_path}", split="train").classes == ("bus", "train")


def test_folder_with_only_one_part(tmp_path):
    _picture(tmp_path / "train" / "ant" / "1.png")
    assert open_source(f"folder:{tmp_path}", split="train").classes == ("ant",)
    with pytest.raises(NoValSplitError):
        open_source(f"folder:{tmp_path}", split="val")


def test_folder_follows_links_but_not_in_circles(tmp_path):
    _picture(tmp_path / "real" / "a.png")
    root = tmp_path / "root"
    (root / "cat").mkdir(parents=True)
    os.symlink(tmp_path / "real", root / "cat" / "linked")
    os.symlink(root, root / "cat" / "circle")
    source = open_source(f"folder:{root}")
    assert [source.name(i) for i in range(len(source))] == ["cat/linked/a.png"]


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_source(f"folder:{tmp_path}/nothing")
    with pytest.raises(DataError, match="no pictures"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is a file"):
        open_source(f"folder:{tmp_path}/a.png")
    with pytest.raises(DataError, match="wants a path"):
        open_source("folder:")
    with pytest.raises(DataError, match=r"a\.png: the file is empty"):
        open_source(f"folder:{tmp_path}").image(0)


def test_random_pictures():
    whole, train, val = (open_source("random:30", split=split) for split in ("all", "train", "val"))
    assert (len(whole), len(train), len(val)) == (30, 27, 3)
    assert val.name(0) == whole.name(27) and np.array_equal(val.image(0), whole.image(27))
    assert not np.array_equal(whole.image(0), whole.image(1))
    assert whole.num_classes == 10 and whole.label(12) == 2
    assert np.asarray(whole.image(0)).std() > 20
    with pytest.raises(DataError, match="at least 2"):
        open_source("random:1")
    with pytest.raises(DataError, match="number of pictures"):
        open_source("random:many")


@pytest.mark.parametrize("spec", ["emoji:", "photos:", "random:9"])
def test_sources_travel_to_workers(spec):
    source = open_source(spec)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.image(5), source.image(5)) and copy.name(5) == source.name(5)


@pytest.mark.parametrize("spec", ["", "pictures/", "foldr:/x", "C:\\pictures", "Emoji:"])
def test_unknown_spec_lists_the_forms(spec):
    with pytest.raises(DataError, match=r"(?s)unknown data source.*emoji:Smileys & Emotion.*wds:/data.*random:256"):
        open_source(spec)


def test_unknown_category_label_and_split():
    with pytest.raises(DataError, match=r"did you mean Smileys & Emotion.*known: Activities"):
        open_source("emoji:Smileys")
    with pytest.raises(DataError, match="did you mean animals"):
        open_source("photos:animal")
    with pytest.raises(DataError, match="train, val, all"):
        open_source("emoji:", split="test")
