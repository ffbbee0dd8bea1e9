"""The data set: augmentation by the seed alone, unreadable files, batches, configurations."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vistok.config import from_dict
from vistok.data import BaseSource, DataConfig, ImageDataset, StatelessBatchSampler, collate, open_dataset, open_source
from vistok.errors import ConfigError, DataError


class _Broken(BaseSource):
    """Grey pictures; those in ``bad`` cannot be read."""

    def __init__(self, count, bad):
        super().__init__("broken:")
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def image(self, index):
        if index in self.bad:
            raise DataError(f"cannot read the picture {self.name(index)}: truncated")
        return Image.new("RGB", (8, 8), (index, index, index))

    def name(self, index):
        return f"{index}.jpg"


def _dataset(**changes):
    options = {"image_size": 32, "crop": "random", "flip": 0.5, "shift": 0.1, "train": True} | changes
    return ImageDataset(open_source("photos:"), **options)


def test_everything_drawn_is_a_function_of_the_seed():
    first, second = _dataset(), _dataset()
    second[3, 99]  # what was read before does not matter
    a, b, c = first[5, 7], second[5, 7], second[5, 8]
    assert torch.equal(a["image"], b["image"]) and not torch.equal(a["image"], c["image"])
    assert a["image"].shape == (3, 32, 32) and a["image"].dtype == torch.float32
    assert 0 <= a["image"].min() and a["image"].max() <= 1
    assert (a["index"], a["label"], a["caption"]) == (5, first.source.label(5), "")


def test_options_do_not_disturb_each_others_draws():
    plain = _dataset(flip=0.0, shift=0.0)[5, 7]["image"]
    flipped = _dataset(flip=1.0, shift=0.0)[5, 7]["image"]
    assert torch.equal(flipped, plain.flip(-1))


def test_flips_happen_as_often_as_asked():
    source = open_source("emoji:")
    dataset = ImageDataset(source, image_size=64, flip=0.25, train=True)
    plain = ImageDataset(source, image_size=64)[150]["image"]
    assert not torch.equal(plain, plain.flip(-1))
    flips = sum(torch.equal(dataset[150, seed]["image"], plain.flip(-1)) for seed in range(400))
    assert 65 < flips < 135  # 100 with a standard deviation of 8.7


def test_shift_reaches_its_limit_and_no_further():
    class Dot(_Broken):
        def image(self, index):
            image = Image.new("RGB", (32, 32), "white")
            image.putpixel((16, 16), (0, 0, 0))
            return image

    dataset = ImageDataset(Dot(1, ()), image_size=32, shift=0.06, train=True)  # 1.92 pixels: 2
    places = {tuple(np.argwhere(dataset[0, seed]["image"][0].numpy() == 0)[0] - 16) for seed in range(500)}
    assert places == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_evaluation_does_not_augment():
    dataset = _dataset(train=False)
    assert dataset.crop == "center"
    assert torch.equal(dataset[5, 1]["image"], dataset[5, 2]["image"])
    assert torch.equal(dataset[5]["image"], ImageDataset(open_source("photos:"), image_size=32)[5]["image"])


def test_unreadable_pictures_are_replaced_counted_and_logged_once(caplog):
    dataset = ImageDataset(_Broken(50, {3, 4, 5}), image_size=8, max_skipped=3)
    with caplog.at_level(logging.WARNING):
        shown = [dataset[3, seed]["index"] for seed in range(40)]
    assert not set(shown) & {3, 4, 5} and len(set(shown)) > 10
    assert "3.jpg" in dataset.skipped and caplog.text.count("3.jpg") == 1
    again = ImageDataset(_Broken(50, {3, 4, 5}), image_size=8, max_skipped=3)
    assert [again[3, seed]["index"] for seed in reversed(range(40))] == shown[::-1]
    assert torch.equal(dataset[3, 0]["image"], again[shown[0], 0]["image"])


def test_too_many_unreadable_pictures_are_an_error_that_lists_them():
    dataset = ImageDataset(_Broken(50, {3, 4, 5}), image_size=8, max_skipped=2)
    dataset[3, 0], dataset[4, 0]
    with pytest.raises(DataError, match=r"3 of 50 .*max_skipped=2.*3\.jpg, 4\.jpg, 5\.jpg"):
        dataset[5, 0]
    strict = ImageDataset(_Broken(50, {3}), image_size=8, max_skipped=0)
    with pytest.raises(DataError, match="1 of 50"):
        strict[3]
    with pytest.raises(DataError, match="2 of 2"):
        ImageDataset(_Broken(2, {0, 1}), image_size=8)[0]


def test_workers_give_the_same_batches_and_share_the_count():
    def batches(workers):
        dataset = ImageDataset(_Broken(20, {1, 2}), image_size=8, flip=0.5, shift=0.2, train=True)
        sampler = StatelessBatchSampler(20, 4, seed=5, num_steps=6)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return list(loader), dataset.skipped

    (alone, skipped), (spread, skipped_by_workers) = batches(0), batches(2)
    assert skipped == skipped_by_workers == ["1.jpg", "2.jpg"]
    for a, b in zip(alone, spread, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["index"], b["index"])
    assert alone[0]["image"].shape == (4, 3, 8, 8) and alone[0]["label"].tolist() == [-1] * 4
    assert alone[0]["label"].dtype == alone[0]["index"].dtype == torch.int64
    assert alone[0]["caption"] == [""] * 4


def test_empty_source_and_unknown_names():
    with pytest.raises(DataError, match="empty"):
        ImageDataset(_Broken(0, ()), image_size=8)
    with pytest.raises(DataError, match="unknown crop"):
        ImageDataset(_Broken(1, ()), image_size=8, crop="middle")


def test_config_opens_train_and_val(tmp_path):
    config = from_dict(DataConfig, {"train": "emoji:", "shift": 0.015, "flip": 1})
    train, val = open_dataset(config, train=True, image_size=32), open_dataset(config, train=False, image_size=32)
    assert (len(train), len(val)) == (1693, 218) and train.train and not val.train
    assert train[0]["image"].shape == (3, 32, 32)
    assert len(open_dataset(DataConfig("photos:", val="emoji:", image_size=8), train=False)) == 218
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    own = DataConfig("photos:", val=f"folder:{tmp_path}", image_size=8)
    assert len(open_dataset(own, train=False)) == 1
    with pytest.raises(DataError, match="no 'val' part"):
        open_dataset(DataConfig(f"folder:{tmp_path}", image_size=8), train=False)
    with pytest.raises(DataError, match="image_size"):
        open_dataset(config, train=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "middle"}, "unknown crop"),
        ({"interpolation": "cubic"}, "did you mean bicubic"),
        ({"flip": 1.5}, "flip"),
        ({"shift": -0.1}, "shift"),
        ({"image_size": 0}, "image_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_skipped": -1}, "max_skipped"),
        ({"train": ""}, "names no source"),
        ({"crops": "center"}, "unknown key"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(DataConfig, {"train": "emoji:"} | changes)
