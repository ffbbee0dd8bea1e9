"""Which pictures make up a batch: a function of (seed, step), and of nothing else.

So a resumed run needs no loader state, and one process or sixty-four see the same global batch.
Position j of step s has the running number p = s * batch_size + j. Epoch p // n is a permutation of
all n pictures, drawn from (seed, epoch); batches run on across the end of an epoch. Everything is
64-bit arithmetic, not a library's random generator: it stays the same with every version.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vistok.errors import ConfigError

Key = tuple[int, int]  # index of the picture, seed of the sample

_ORDER, _SAMPLE = 1, 2  # keep the two uses of one seed apart


class StatelessBatchSampler(Sampler[list[Key]]):
    """Batches of (index, sample_seed) for one process.

    Each step yields this process's contiguous slice of the global batch, cut into ``micro_batches``
    pieces: one yield each, ``micro_batches`` yields a step. It is a ``batch_sampler`` of a
    ``DataLoader``, which must not be sharded a second time (``accelerator.prepare`` would).

    Args:
        num_samples: size of the data set.
        batch_size: global batch size, over all processes and micro batches.
        seed: of the order and of all augmentation.
        start_step: first step to yield; a run resumed after step s starts at s.
        num_steps: the step to stop before, counted from step 0 (not from ``start_step``).
        rank: of this process.
        world_size: number of processes.
        micro_batches: gradient accumulation.
    Raises:
        ConfigError: a size below 1, or a batch that the processes and micro batches do not divide.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        num_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("world_size", world_size), ("micro_batches", micro_batches)):
            if value < 1:
                raise ConfigError(f"{name} is at least 1, got {value}")
        if batch_size < 1 or batch_size % (world_size * micro_batches):
            raise ConfigError(
                f"the global batch_size {batch_size} does not divide among {world_size} processes x {micro_batches} "
                f"micro batches; take a multiple of {world_size * micro_batches}"
            )
        if not 0 <= rank < world_size or start_step < 0:
            raise ConfigError(
                f"wanted 0 <= rank < world_size and start_step >= 0, got {rank}, {world_size}, {start_step}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Number of yields."""
        return max(0, self.num_steps - self.start_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        per_process = self.batch_size // self.world_size
        size = per_process // self.micro_batches
        for step in range(self.start_step, self.num_steps):
            first = step * self.batch_size + self.rank * per_process
            keys = self._keys(np.arange(first, first + per_process, dtype=np.int64))
            for start in range(0, per_process, size):
                yield keys[start : start + size]

    def _keys(self, positions: np.ndarray) -> list[Key]:
        indices = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = self._permutation(epoch)[places[here]]
        return list(zip(indices.tolist(), _mix(self.seed, _SAMPLE, positions).tolist(), strict=True))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.num_samples, seed=self.seed, epoch=epoch)
        return self._order


def permutation(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: int64 [num_samples], every index once."""
    keys = _mix(seed, _ORDER, epoch, np.arange(num_samples, dtype=np.int64))
    return np.argsort(keys, kind="stable")


def sample_seed(*values: int) -> int:
    """A 63-bit seed that depends on all the values and their order."""
    return int(_mix(*values))


def _mix(*values: int | np.ndarray) -> np.ndarray:
    """Hash whole numbers into [0, 2**63); arrays broadcast. The mixing step is SplitMix64's (Steele et al. 2014)."""
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        word = np.asarray(value % (1 << 64) if isinstance(value, int) else value).astype(np.uint64)
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around in silence
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(1)).astype(np.int64).reshape(np.broadcast(*values).shape)
