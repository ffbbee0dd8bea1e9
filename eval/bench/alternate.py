"""Timing two functions beside each other in one process, on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def alternate(
    ours: Callable[[], Any], plain: Callable[[], Any], repeats: int, *, clock: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    """The median of ``plain``'s time, as a rule the processor's, over ``ours``', pair by pair, and the median seconds of ``ours``.

    Who goes first changes from pair to pair, so that a drift of the machine falls on both.
    """
    ratios, seconds = [], []
    for index in range(repeats):
        pair = {}
        for function in (ours, plain) if index % 2 else (plain, ours):
            start = clock()
            function()
            pair[function] = clock() - start
        ratios.append(pair[plain] / pair[ours])
        seconds.append(pair[ours])
    return statistics.median(ratios), statistics.median(seconds)
