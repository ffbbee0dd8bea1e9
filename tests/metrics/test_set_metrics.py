"""Metrics of two sets of features, against torch-fidelity, scikit-learn-like loops, and sets whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.set_metrics import (
    bootstrap_std,
    clip_mmd,
    density_coverage,
    inception_score,
    kernel_distance,
    precision_recall,
    radii,
)

ORACLE = {"rel": 1e-6, "abs": 1e-9}


def features(count: int, dims: int = 24, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator) * scale + shift


@pytest.mark.parametrize(("shift", "size"), [(0.0, 50), (0.4, 50), (0.1, 37)])
def test_kernel_distance_is_torch_fidelitys(shift: float, size: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = features(90).double(), features(70, seed=1, shift=shift).double()
    options = {"kid_subsets": 13, "kid_subset_size": size, "verbose": False}
    expected = theirs.kid_features_to_metric(a, b, **options)
    got = kernel_distance(a, b, subsets=13, subset_size=size)
    assert got.value == pytest.approx(expected["kernel_inception_distance_mean"], **ORACLE)
    assert got.std == pytest.approx(expected["kernel_inception_distance_std"], **ORACLE)


@pytest.mark.parametrize(("count", "splits", "shuffle"), [(100, 10, True), (103, 7, True), (64, 1, False)])
def test_inception_score_is_torch_fidelitys(count: int, splits: int, shuffle: bool) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = features(count, 30, scale=3.0)
    expected = theirs.isc_features_to_metric(logits, splits, shuffle)
    got = inception_score(logits, splits=splits, shuffle=shuffle)
    assert got.value == pytest.approx(expected["inception_score_mean"], **ORACLE)
    assert got.std == pytest.approx(expected["inception_score_std"], **ORACLE)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_are_torch_fidelitys(neighbours: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    a, b = features(120, 6).double(), features(90, 6, seed=1, shift=0.7, scale=0.8).double()
    expected = theirs.prc_features_to_metric(
        a, b, prc_neighborhood=neighbours, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    got = precision_recall(a, b, neighbours=neighbours)
    assert got == pytest.approx((expected["precision"], expected["recall"]), **ORACLE)


def test_frechet_distance_is_torch_fidelitys_and_scipys() -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(400, 20), features(300, 20, seed=1, shift=0.3, scale=1.3)
    stats = []
    for part in (a, b):
        one = FeatureStats(20)
        one.update(part)
        stats.append(one)
    expected = theirs.fid_features_to_statistics(a), theirs.fid_features_to_statistics(b)
    fid = theirs.fid_statistics_to_metric(*expected, False)["frechet_inception_distance"]
    assert frechet_distance(*stats) == pytest.approx(fid, **ORACLE)
    covariances = [np.cov(part.double().numpy(), rowvar=False) for part in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    means = (a.double().mean(0) - b.double().mean(0)).square().sum()
    by_scipy = float(means) + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert frechet_distance(*stats) == pytest.approx(by_scipy, **ORACLE)


def test_a_collapsed_sample_is_precise_and_recalls_nothing() -> None:
    reference = features(300, 4)
    collapsed = reference[7] + 1e-4 * features(200, 4, seed=2)
    precision, recall = precision_recall(collapsed, reference)
    density, coverage = density_coverage(collapsed, reference)
    assert precision == 1.0 and recall < 0.02
    assert density >= 1.0 and coverage < 0.05


def test_a_scattered_sample_recalls_and_is_imprecise() -> None:
    reference = features(300, 4, scale=0.05)
    scattered = features(300, 4, seed=2, scale=5.0)
    precision, recall = precision_recall(scattered, reference)
    assert precision < 0.05 and recall > 0.9


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99))
def test_identical_sets_and_permuted_orders(seed: int) -> None:
    a = features(60, 5, seed=seed)
    b = features(50, 5, seed=seed + 1, shift=0.2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    assert precision_recall(a, a) == (1.0, 1.0)
    assert density_coverage(a, a)[1] == 1.0
    assert clip_mmd(a, a) == pytest.approx(0.0, abs=1e-9)
    assert precision_recall(a[order], b) == precision_recall(a, b)
    assert density_coverage(a[order], b) == density_coverage(a, b)
    assert clip_mmd(a[order], b) == pytest.approx(clip_mmd(a, b), rel=1e-9)
    assert clip_mmd(a, b) == pytest.approx(clip_mmd(b, a), rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99))
def test_the_density_of_a_set_in_itself_is_one_in_any_order(seed: int) -> None:
    """Distances of one pair, computed in two orders, differ in their last digits; in many dimensions often."""
    a = features(64, 2048, seed=seed, shift=3.0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    for one, two in ((a, a), (a, a[order]), (a[order], a)):
        assert density_coverage(one, two) == (1.0, 1.0)


def test_classes_without_probability_add_nothing_to_the_score() -> None:
    logits = torch.zeros(20, 10)
    logits[:, 0] = 2000.0
    assert inception_score(logits, splits=2).value == 1.0


def test_density_and_coverage_by_hand() -> None:
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    samples = torch.tensor([[0.5], [20.0], [3.5]])
    # Balls of one neighbour: radii 1, 1, 2, 4 around 0, 1, 3, 7; each sample's balls: 2, 0 and 2 (7 is 3.5 away).
    assert radii(reference, 1).tolist() == [1.0, 1.0, 2.0, 4.0]
    assert density_coverage(samples, reference, neighbours=1) == (4 / 3, 1.0)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vistok.metrics import set_metrics

    a, b = features(100, 8), features(80, 8, seed=1, shift=0.3)
    whole = precision_recall(a, b), density_coverage(a, b), clip_mmd(a, b)
    monkeypatch.setattr(set_metrics, "_BLOCK", 700)
    blocks = precision_recall(a, b), density_coverage(a, b), clip_mmd(a, b)
    assert blocks[:2] == whole[:2] and blocks[2] == pytest.approx(whole[2], rel=1e-12)


def test_mmd_of_unit_vectors_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]])

    def kernel(squared: float) -> float:
        return math.exp(-squared / 200)

    xx, yy = (1 + kernel(2)) / 2, (1 + kernel(4)) / 2
    xy = (kernel(0) + kernel(4) + 2 * kernel(2)) / 4
    assert clip_mmd(x, y) == pytest.approx(1000 * (xx + yy - 2 * xy), rel=1e-9)


def test_bootstrap_is_of_the_size_that_theory_says() -> None:
    values = features(2000, 1)[:, 0]
    std = bootstrap_std(lambda rows: float(values[rows].mean()), 2000, resamples=200)
    assert std == pytest.approx(float(values.std()) / math.sqrt(2000), rel=0.2)


def test_bad_input() -> None:
    a = features(20)
    for call in (
        lambda: kernel_distance(a, a, subset_size=21),
        lambda: inception_score(a, splits=21),
        lambda: precision_recall(a, a, neighbours=20),
        lambda: precision_recall(a, features(20, 23)),
    ):
        with pytest.raises(VistokError):
            call()
