"""Fréchet distance between two sets of features, each taken as a Gaussian (FID, arXiv:1706.08500).

Statistics are gathered batch by batch in double precision, so that a hundred thousand images need
no more memory than one batch, and any number of processes gives the same.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vistok.errors import DataError, VistokError
from vistok.metrics.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


class FeatureStats:
    """Number, mean and covariance of feature vectors, streaming.

    Batches are merged by Chan, Golub and LeVeque's formula (1979), which never subtracts large
    numbers of almost equal size.

    Args:
        dims: D, the length of a vector.
        features: name of the extractor; different names are never compared. "" where unknown.
        device: where to sum up; must have double precision.

    Attributes:
        n: vectors seen; None for statistics read from a file that does not tell.
        mean: float64 [D].
    """

    def __init__(self, dims: int, *, features: str = "", device: torch.device | str = "cpu") -> None:
        if dims < 1:
            raise VistokError(f"feature vectors have one number or more, got dims={dims}")
        self.dims, self.features = dims, features
        self.n: int | None = 0
        self.mean = torch.zeros(dims, dtype=torch.float64, device=device)
        # Sum of outer products of deviations from the mean; the covariance itself where n is unknown.
        self._scatter = torch.zeros(dims, dims, dtype=torch.float64, device=device)

    @property
    def covariance(self) -> Tensor:
        """float64 [D, D], divided by n - 1.

        Raises:
            VistokError: fewer than two vectors.
        """
        if self.n is None:
            return self._scatter
        if self.n < 2:
            raise VistokError(f"a covariance takes two feature vectors or more, got {self.n}")
        return self._scatter / (self.n - 1)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Take in a batch.

        Args:
            features: float [B, D]; B may be 0.
        Raises:
            VistokError: wrong shape or type, NaN or infinity, or statistics of unknown count.
        """
        if features.ndim != 2 or features.shape[1] != self.dims or not features.is_floating_point():
            raise VistokError(
                f"these statistics take float features [B, {self.dims}], got {features.dtype} {list(features.shape)}"
            )
        x = features.to(device=self.mean.device, dtype=torch.float64)
        if not x.isfinite().all():
            raise VistokError("features are NaN or infinite; look at the images, and at the extractor's precision")
        if len(x):
            mean = x.mean(dim=0)
            deviations = x - mean
            self._take_in(len(x), mean, deviations.T @ deviations)

    def merge(self, other: FeatureStats) -> None:
        """Take in all that ``other`` has seen, as if its batches had come here."""
        _check_comparable(self, other)
        if other.n is None:
            raise VistokError("statistics of an unknown number of images cannot be merged")
        if other.n:
            self._take_in(other.n, other.mean.to(self.mean.device), other._scatter.to(self.mean.device))

    def all_reduce(self, accelerator: Accelerator | None) -> None:
        """Take in what all other processes have seen; afterwards all have the same. None: there is no other."""
        if accelerator is None or accelerator.num_processes == 1:
            return
        own = self._known_count()
        count = torch.tensor([own], dtype=torch.float64, device=self.mean.device)
        sums = sum_over_processes(torch.cat([count, self.mean * own]), accelerator)
        total, mean = int(sums[0]), sums[1:] / sums[0].clamp(min=1.0)
        shift = self.mean - mean
        self._scatter = sum_over_processes(self._scatter + own * torch.outer(shift, shift), accelerator)
        self.n, self.mean = total, mean

    def state(self) -> dict[str, np.ndarray]:
        """What ``restore`` goes on from, bit for bit."""
        count = np.array(-1 if self.n is None else self.n)
        return {"n": count, "mean": self.mean.cpu().numpy(), "scatter": self._scatter.cpu().numpy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Forget what was seen, and go on from a ``state`` of as many dimensions."""
        if state["mean"].shape != (self.dims,):
            raise VistokError(f"a state of {state['mean'].shape[0]} dimensions does not fit statistics of {self.dims}")
        self.n = None if int(state["n"]) < 0 else int(state["n"])
        self.mean, self._scatter = (
            torch.from_numpy(state[name].copy()).to(self.mean.device) for name in ("mean", "scatter")
        )

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` with ``mu`` and ``sigma`` as pytorch-fid has them, and ``n`` and ``features``."""
        path = Path(path)
        arrays = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy(), "features": self.features}
        if self.n is not None:
            arrays["n"] = np.int64(self.n)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path, *, spatial: bool = False) -> FeatureStats:
        """Read an ``.npz`` of this class, of pytorch-fid, clean-fid or ADM (which do not tell ``n``).

        Args:
            path: the file.
            spatial: of ADM's, the statistics of sFID.
        Raises:
            DataError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = {"mu": "mu_s", "sigma": "sigma_s"} if spatial else {}
                wanted = {name: names.get(name, name) for name in ("mu", "sigma", "n", "features")}
                arrays = {name: file[key] for name, key in wanted.items() if key in file.files}
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read the statistics {path}: {error}") from error
        if spatial and arrays.get("features"):
            arrays["features"] = f"{arrays['features']}/spatial"
        return cls._from_arrays(arrays, str(path))

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Any], where: str) -> FeatureStats:
        mu, sigma = arrays.get("mu"), arrays.get("sigma")
        if mu is None or sigma is None or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
            shapes = {name: value.shape for name, value in arrays.items()}
            raise DataError(f"{where} holds no feature statistics: wanted mu [D] and sigma [D, D], got {shapes}")
        stats = cls(len(mu), features=str(arrays.get("features", "")))
        stats.n = int(arrays["n"]) if "n" in arrays else None
        if stats.n is not None and stats.n < 2:
            raise DataError(f"{where} holds statistics of {stats.n} images; two are the least")
        stats.mean = torch.from_numpy(mu.astype(np.float64))
        covariance = torch.from_numpy(sigma.astype(np.float64))
        stats._scatter = covariance if stats.n is None else covariance * (stats.n - 1)
        if not (stats.mean.isfinite().all() and covariance.isfinite().all()):
            raise DataError(f"{where} holds NaN or infinity")
        return stats

    def _known_count(self) -> int:
        if self.n is None:
            raise VistokError("statistics of an unknown number of images take in no more; gather them anew")
        return self.n

    def _take_in(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        own = self._known_count()
        total = own + n
        shift = mean - self.mean
        self._scatter += scatter
        self._scatter += torch.outer(shift, shift) * (own * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Fréchet distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F F^T and B = G G^T, the trace of the root is the sum of the singular values of F^T G:
    no root of an unsymmetric product is taken, and covariances of fewer images than dimensions
    need no small number on their diagonal.

    Returns:
        From 0, for equal statistics; lower is better.
    Raises:
        VistokError: other extractors or dimensions, or fewer than two images.
    """
    _check_comparable(a, b)
    mean = (a.mean.cpu() - b.mean.cpu()).square().sum()
    first, second = a.covariance.cpu(), b.covariance.cpu()
    root = torch.linalg.svdvals(_factor(first).T @ _factor(second)).sum()
    distance = float(mean + first.trace() + second.trace() - 2.0 * root)
    return max(distance, 0.0)  # rounding can leave -1e-12


def _factor(covariance: Tensor) -> Tensor:
    """F [D, R] with F F^T = the covariance, R its numerical rank."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2.0)
    # Noise of size eps around 0 would become sqrt(eps) in the root.
    kept = values > values[-1].clamp(min=0.0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def _check_comparable(a: FeatureStats, b: FeatureStats) -> None:
    if a.dims != b.dims:
        raise VistokError(f"statistics of {a.dims} and of {b.dims} dimensions cannot be compared")
    if a.features and b.features and a.features != b.features:
        raise VistokError(f"statistics of the features {a.features} and {b.features} cannot be compared")
