"""Feature statistics and the Fréchet distance: against numpy, scipy and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistok.errors import DataError, VistokError
from vistok.metrics import FeatureStats, frechet_distance


def stats_of(x: torch.Tensor, *, features: str = "") -> FeatureStats:
    stats = FeatureStats(x.shape[1], features=features)
    stats.update(x)
    return stats


def correlated(n: int, dims: int, seed: int, *, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    return torch.randn(n, dims, generator=generator, dtype=torch.float64) @ mixing + shift


def by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    from scipy.linalg import sqrtm

    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (a, b))
    root = sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root))


@pytest.mark.parametrize(("n", "m", "dims"), [(400, 300, 1), (400, 300, 24), (900, 700, 96)])
def test_equals_scipy(n: int, m: int, dims: int) -> None:
    pytest.importorskip("scipy")
    a, b = correlated(n, dims, 1).reshape(n, dims), correlated(m, dims, 2, shift=0.3).reshape(m, dims)
    if dims > 1:
        assert frechet_distance(stats_of(a), stats_of(b)) == pytest.approx(by_scipy(a, b), rel=1e-9)
    else:
        means = float((a.mean() - b.mean()) ** 2)
        assert frechet_distance(stats_of(a), stats_of(b)) == pytest.approx(
            means + float((a.std() - b.std()) ** 2), rel=1e-9
        )


@pytest.mark.parametrize("n", [40, 500])  # fewer and more vectors than dimensions
def test_equals_torch_fidelity(n: int) -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = correlated(n, 64, 3), correlated(n, 64, 4, shift=0.1)
    theirs = fid.fid_statistics_to_metric(fid.fid_features_to_statistics(a), fid.fid_features_to_statistics(b), False)
    # With fewer vectors their eigenvalues around zero have errors of the root of the precision.
    tolerance = 1e-9 if n > 64 else 1e-5
    ours = frechet_distance(stats_of(a), stats_of(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=tolerance)


def test_closed_form_of_commuting_covariances() -> None:
    """In one eigenbasis the distance is the sum of squared differences of standard deviations, rank or not."""
    basis = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0]
    first, second = torch.rand(50, dtype=torch.float64) * 3, torch.rand(50, dtype=torch.float64)
    first[10:30] = 0.0
    second[20:40] = 0.0
    both = []
    for deviations in (first, second):
        stats = FeatureStats(50)
        stats.n, stats._scatter = None, basis @ torch.diag(deviations.square()) @ basis.T
        both.append(stats)
    assert frechet_distance(*both) == pytest.approx(float((first - second).square().sum()), abs=1e-9)


@pytest.mark.parametrize(("n", "dims", "scale"), [(2, 5, 1.0), (20, 256, 1.0), (20, 256, 100.0), (600, 128, 1e-3)])
def test_zero_for_equal_statistics(n: int, dims: int, scale: float) -> None:
    stats = stats_of(correlated(n, dims, 5) * scale)
    assert 0.0 <= frechet_distance(stats, stats) <= 1e-6 * max(1.0, scale**2)


def test_symmetric_and_invariant_under_rotation() -> None:
    a, b = correlated(30, 48, 6), correlated(200, 48, 7, shift=1.0)
    turn = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]
    distance = frechet_distance(stats_of(a), stats_of(b))
    assert frechet_distance(stats_of(b), stats_of(a)) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(stats_of(a @ turn), stats_of(b @ turn)) == pytest.approx(distance, rel=1e-10)


def test_constant_features() -> None:
    same, other = torch.ones(4, 3), torch.full((4, 3), 2.0)
    assert frechet_distance(stats_of(same), stats_of(other)) == pytest.approx(3.0)


@given(cuts=st.lists(st.integers(0, 50), max_size=6), seed=st.integers(0, 1000))
def test_batches_do_not_matter(cuts: list[int], seed: int) -> None:
    features = correlated(50, 4, seed)
    stats, halves = FeatureStats(4), [FeatureStats(4), FeatureStats(4)]
    for number, part in enumerate(torch.tensor_split(features, sorted(cuts))):
        stats.update(part)
        halves[number % 2].update(part)
    halves[0].merge(halves[1])
    for one in (stats, halves[0]):
        assert one.n == 50
        torch.testing.assert_close(one.mean, features.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.covariance, torch.cov(features.T), rtol=1e-10, atol=1e-12)


def test_stable_far_from_zero() -> None:
    """A mean a hundred million times the deviation: sums of squares would have lost every digit."""
    features = 1e8 + torch.randn(1000, 3, dtype=torch.float64)
    stats = FeatureStats(3)
    for part in features.split(7):
        stats.update(part)
    expected = torch.cov((features - 1e8).T)
    torch.testing.assert_close(stats.covariance, expected, rtol=1e-6, atol=1e-6)


def test_file_round_trip(tmp_path) -> None:
    stats = stats_of(correlated(30, 6, 8), features="lite0")
    stats.save(tmp_path / "reference.npz")
    again = FeatureStats.load(tmp_path / "reference.npz")
    assert (again.n, again.features, again.dims) == (30, "lite0", 6)
    torch.testing.assert_close(again.covariance, stats.covariance, rtol=1e-14, atol=0)
    more = correlated(10, 6, 9)
    again.update(more)
    stats.update(more)
    torch.testing.assert_close(again.covariance, stats.covariance)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_pytorch_fid_file(tmp_path) -> None:
    features = correlated(30, 6, 10)
    sigma = np.cov(features.numpy(), rowvar=False)
    np.savez(tmp_path / "reference.npz", mu=features.mean(0).numpy(), sigma=sigma)
    stats = FeatureStats.load(tmp_path / "reference.npz")
    assert stats.n is None
    assert frechet_distance(stats, stats_of(features)) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(VistokError, match="unknown number"):
        stats.update(features)
    with pytest.raises(VistokError, match="unknown number"):
        stats_of(features).merge(stats)
    stats.save(tmp_path / "copy.npz")
    assert FeatureStats.load(tmp_path / "copy.npz").n is None


def test_refuses_files(tmp_path) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(DataError, match=r"bad\.npz"):
        FeatureStats.load(path)
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3)}
    for bad in (
        {"mu": np.zeros(3)},
        arrays | {"sigma": np.eye(2)},
        arrays | {"mu": np.array([{}, 1, 2], dtype=object)},
        arrays | {"mu": np.full(3, np.nan)},
        arrays | {"n": 1},
    ):
        np.savez(path, **bad)
        with pytest.raises(DataError, match=r"bad\.npz"):
            FeatureStats.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read"):
        FeatureStats.load(path)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(DataError, match="cannot read"):
        FeatureStats.load(tmp_path / "bad.npy")


def test_refuses_features() -> None:
    stats = FeatureStats(4)
    for bad in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(VistokError, match=r"float features \[B, 4\]"):
            stats.update(bad)
    with pytest.raises(VistokError, match="NaN"):
        stats.update(torch.full((2, 4), torch.nan))
    stats.update(torch.zeros(1, 4))
    with pytest.raises(VistokError, match="two feature vectors or more, got 1"):
        frechet_distance(stats, stats)
    with pytest.raises(VistokError, match="4 and of 5"):
        frechet_distance(stats, FeatureStats(5))
    with pytest.raises(VistokError, match="inception and lite0"):
        FeatureStats(4, features="inception").merge(FeatureStats(4, features="lite0"))
    with pytest.raises(VistokError, match="dims=0"):
        FeatureStats(0)
