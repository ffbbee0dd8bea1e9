"""What two sets of features say about two sets of images, besides the Fréchet distance.

Everything is computed in double precision, in blocks, so that fifty thousand vectors need no matrix of all their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError

SEED = 2020  # torch-fidelity's, so that its subsets and orders are ours
_BLOCK = 2**24  # pairs at a time
# Distances of a pair that are computed in two orders differ by less: what is nearer to a ball's edge lies on it.
_ROUNDING = 1e-9
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


@dataclass(frozen=True)
class Estimate:
    """A number, and its standard deviation over the splits or subsets that it is the mean of."""

    value: float
    std: float


def mean_of(values: Tensor) -> Estimate:
    """The mean of values [N], and its standard error (NaN for one value)."""
    values = values.double()
    error = float(values.std(correction=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = SEED) -> Estimate:
    """Kernel distance (KID, arXiv:1801.01401): the unbiased squared MMD under (x.y / D + 1)^3, over random subsets.

    Args:
        a, b: features [N, D] and [M, D].
        subsets: how many pairs of subsets.
        subset_size: of each; at most N and M.
        seed: of the choice, which is torch-fidelity's.
    Raises:
        VistokError: fewer vectors than ``subset_size``, or other dimensions.
    """
    _check(a, b)
    if not 2 <= subset_size <= min(len(a), len(b)) or subsets < 1:
        raise VistokError(
            f"subsets of {subset_size} cannot be drawn from {len(a)} and {len(b)} features; make them smaller"
        )
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = a[torch.from_numpy(rng.choice(len(a), subset_size, replace=False))].double()
        y = b[torch.from_numpy(rng.choice(len(b), subset_size, replace=False))].double()
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1.0) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        pairs = subset_size * (subset_size - 1)
        values.append(float((xx.sum() - xx.trace() + yy.sum() - yy.trace()) / pairs - 2.0 * xy.mean()))
    return Estimate(float(np.mean(values)), float(np.std(values)))


def inception_score(logits: Tensor, *, splits: int = 10, shuffle: bool = True, seed: int = SEED) -> Estimate:
    """Inception score (arXiv:1606.03498): exp of the mean KL divergence of predictions from their mean, over splits.

    Args:
        logits: [N, K].
        splits: parts, one after the other; the value is their mean.
        shuffle: in a random order first, as torch-fidelity does; images sorted by class give another number otherwise.
        seed: of that order.
    Raises:
        VistokError: fewer images than splits.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise VistokError(f"{count} images do not make {splits} splits")
    if shuffle:
        logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(count))]
    log_p = logits.double().log_softmax(dim=1)
    values = []
    for part in range(splits):
        chunk = log_p[part * count // splits : (part + 1) * count // splits]
        p = chunk.exp()
        terms = p * (chunk - p.mean(dim=0, keepdim=True).log())
        values.append(float(terms.where(p > 0, 0.0).sum(dim=1).mean().exp()))  # a class of probability 0 adds nothing
    return Estimate(float(np.mean(values)), float(np.std(values)))


def split_places(count: int, splits: int, *, shuffle: bool = True, seed: int = SEED) -> Tensor:
    """The split that each of ``count`` images belongs to, int64 [count], as ``inception_score`` splits them."""
    order = np.random.RandomState(seed).permutation(count) if shuffle else np.arange(count)
    split_of = torch.zeros(count, dtype=torch.int64)
    for part in range(splits):
        split_of[torch.from_numpy(order[part * count // splits : (part + 1) * count // splits])] = part
    return split_of


def precision_recall(samples: Tensor, reference: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall (arXiv:1904.06991): the share of each set that lies within the other's k-nearest-neighbour balls.

    Args:
        samples, reference: features [N, D] and [M, D].
        neighbours: k, a vector itself not counted.
    """
    _check(samples, reference, neighbours)
    own, others = radii(samples, neighbours), radii(reference, neighbours)
    inside = _any_within(samples, reference, others), _any_within(reference, samples, own)
    return float(inside[0].double().mean()), float(inside[1].double().mean())


def density_coverage(samples: Tensor, reference: Tensor, *, neighbours: int = 5) -> tuple[float, float]:
    """Density and coverage (arXiv:2002.09797), which one outlier of the reference does not change much.

    Density: of how many reference balls a sample lies within, over k; it may be above 1. Coverage: the share of
    reference balls with a sample inside.
    """
    hits, covered = ball_hits(samples, reference, neighbours=neighbours)
    return float(hits.double().mean()) / neighbours, float(covered.double().mean())


def ball_hits(samples: Tensor, reference: Tensor, *, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """What density and coverage are means of: the number of reference balls around each sample, int64 [N], and whether
    each ball has a sample inside, bool [M].

    Args:
        samples, reference: features [N, D] and [M, D].
        neighbours: k, a vector itself not counted.
    """
    _check(samples, reference, neighbours)
    balls = radii(reference, neighbours)
    hits, covered = [], torch.zeros(len(reference), dtype=torch.bool)
    for _, distances in _distance_blocks(samples, reference):
        within = distances < balls * (1 - _ROUNDING)
        hits.append(within.sum(dim=1))
        covered |= within.any(dim=0)
    return torch.cat(hits), covered


def clip_mmd(samples: Tensor, reference: Tensor) -> float:
    """CMMD (arXiv:2401.09603): 1000 times the biased squared MMD of unit CLIP embeddings under a Gaussian kernel, sigma 10."""
    _check(samples, reference)
    x, y = (torch.nn.functional.normalize(part.double(), dim=1) for part in (samples, reference))

    def mean(p: Tensor, q: Tensor) -> float:
        total = sum(float((-d.square() / (2 * _CMMD_SIGMA**2)).exp().sum()) for _, d in _distance_blocks(p, q))
        return total / (len(p) * len(q))

    return _CMMD_SCALE * (mean(x, x) + mean(y, y) - 2.0 * mean(x, y))


def bootstrap_std(function: Callable[[Tensor], float], count: int, *, resamples: int, seed: int = SEED) -> float:
    """The standard deviation of ``function(indices)`` over resamples of ``count`` places with replacement."""
    rng = np.random.RandomState(seed)
    values = [function(torch.from_numpy(rng.randint(0, count, count))) for _ in range(resamples)]
    return float(np.std(values, ddof=1)) if resamples > 1 else float("nan")


def radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each vector [N, D] from its k-th nearest neighbour, float64 [N]."""
    parts = [d.kthvalue(neighbours + 1, dim=1).values for _, d in _distance_blocks(features, features)]
    return torch.cat(parts)


def _any_within(points: Tensor, centres: Tensor, balls: Tensor) -> Tensor:
    return torch.cat([(d <= balls * (1 + _ROUNDING)).any(dim=1) for _, d in _distance_blocks(points, centres)])


def _distance_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where a block begins in ``a``, and its Euclidean distances from all of ``b``."""
    rows, b = max(1, _BLOCK // len(b)), b.double()
    for start in range(0, len(a), rows):
        part = a[start : start + rows].double()
        distances = torch.cdist(part, b)
        if a.data_ptr() == b.data_ptr() or a is b or (len(a) == len(b) and torch.equal(part, b[start : start + rows])):
            # The product form leaves 1e-8 instead of 0 between a vector and itself.
            own = torch.arange(len(part))
            distances[own, own + start] = 0.0
        yield start, distances


def _check(a: Tensor, b: Tensor, neighbours: int = 0) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise VistokError(
            f"two sets of vectors of one length are wanted, two or more each; got {list(a.shape)} and {list(b.shape)}"
        )
    if neighbours and not neighbours < min(len(a), len(b)):
        raise VistokError(f"{neighbours} neighbours want more vectors than that; got {len(a)} and {len(b)}")
