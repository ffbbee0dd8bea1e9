"""Names of ImageNet's classes."""

from __future__ import annotations

from vistok.data.imagenet import class_words, imagenet_names


def test_names_are_words_in_the_order_of_the_class_numbers() -> None:
    names = list(imagenet_names().values())
    assert len(set(names)) == len(names) == 1000
    assert [names[number] for number in (0, 1, 207, 999)] == ["tench", "goldfish", "golden retriever", "toilet tissue"]
    assert not any("," in name for name in names)  # so that a list of them can be given with commas


def test_only_folders_of_imagenet_are_put_in_words() -> None:
    assert class_words(["n01440764", "n02099601", "mine"]) == ["tench", "golden retriever", "mine"]
    assert class_words(["cat", "n1"]) == ["cat", "n1"] and class_words([]) == []
