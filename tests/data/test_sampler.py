"""The stateless sampler: each epoch once, the same for any number of processes, resumable anywhere."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data import StatelessBatchSampler
from vistok.data.sampler import permutation, sample_seed
from vistok.errors import ConfigError

few = settings(max_examples=50, deadline=None)


def _flat(sampler):
    return list(itertools.chain.from_iterable(sampler))


@few
@given(num_samples=st.integers(1, 50), batch_size=st.integers(1, 20), seed=st.integers(-5, 2**70))
def test_covers_each_epoch_exactly_once(num_samples, batch_size, seed):
    steps = -(-3 * num_samples // batch_size)
    keys = _flat(StatelessBatchSampler(num_samples, batch_size, seed=seed, num_steps=steps))
    assert len(keys) == steps * batch_size
    for epoch in range(3):
        part = keys[epoch * num_samples : (epoch + 1) * num_samples]
        assert Counter(index for index, _ in part) == Counter(range(num_samples))
    assert len({sample for _, sample in keys}) == len(keys)


@few
@given(
    num_samples=st.integers(1, 40),
    per_piece=st.integers(1, 4),
    world_size=st.integers(1, 4),
    micro_batches=st.integers(1, 3),
    start=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_processes_and_micro_batches_partition_the_global_batch(
    num_samples, per_piece, world_size, micro_batches, start, seed
):
    batch_size, stop = per_piece * world_size * micro_batches, 8
    whole = list(StatelessBatchSampler(num_samples, batch_size, seed=seed, num_steps=stop))
    samplers = [
        StatelessBatchSampler(
            num_samples,
            batch_size,
            seed=seed,
            start_step=start,
            num_steps=stop,
            rank=rank,
            world_size=world_size,
            micro_batches=micro_batches,
        )
        for rank in range(world_size)
    ]
    pieces = [list(sampler) for sampler in samplers]
    assert all(len(part) == len(sampler) for part, sampler in zip(pieces, samplers, strict=True))
    for step in range(start, stop):
        first = (step - start) * micro_batches
        union = [key for part in pieces for piece in part[first : first + micro_batches] for key in piece]
        assert union == whole[step]
    assert all(len(piece) == per_piece for part in pieces for piece in part)


def test_iterating_twice_is_the_same():
    sampler = StatelessBatchSampler(7, 3, seed=1, num_steps=9)
    assert list(sampler) == list(sampler)


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(30, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_order_is_frozen():
    # A changed order would silently break the resuming of older runs.
    assert permutation(8, seed=0, epoch=0).tolist() == [1, 6, 5, 4, 3, 7, 2, 0]
    assert sample_seed(1, 2) == 6804074658870690613
    assert next(iter(StatelessBatchSampler(8, 2, seed=0, num_steps=1))) == [
        (1, 7707993040052960274),
        (6, 2945233807240002957),
    ]


def test_order_looks_random():
    # Each of 20 items is first in about 1/20 of 4,000 epochs (200); 5 standard deviations are 69.
    counts = Counter(int(permutation(20, seed=3, epoch=epoch)[0]) for epoch in range(4000))
    assert len(counts) == 20 and all(abs(count - 200) < 69 for count in counts.values())


def test_past_the_end_is_empty():
    sampler = StatelessBatchSampler(7, 3, seed=1, start_step=9, num_steps=5)
    assert len(sampler) == 0 and list(sampler) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"world_size": 3}, "multiple of 3"),
        ({"micro_batches": 3}, "multiple of 3"),
        ({"rank": 1}, "rank"),
        ({"start_step": -1}, "start_step"),
    ],
)
def test_refuses(changes, message):
    arguments = {"num_samples": 10, "batch_size": 4, "seed": 0, "num_steps": 1} | changes
    with pytest.raises(ConfigError, match=message):
        StatelessBatchSampler(**arguments)
