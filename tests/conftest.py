"""What all tests share: one thread, fixed seeds, no network, and where the full golden cases are."""

from __future__ import annotations

import os
import random
from pathlib import Path

# ruff: noqa: E402 - set before torch is imported, as the libraries under it read these only once.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run, and no time limit for one: a busy machine is not a bug.
settings.register_profile("vistok", deadline=None, derandomize=True)
settings.load_profile("vistok")

NO_GOLDEN = "the full golden cases are not here; set VISTOK_GOLDEN to their folder"


def find_golden() -> Path | None:
    """The folder of the full golden cases: ``VISTOK_GOLDEN``, else one beside the repository, else None."""
    named = os.environ.get("VISTOK_GOLDEN")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "golden"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """The folder of the full golden cases; the test is skipped where there is none."""
    folder = find_golden()
    if folder is None:
        pytest.skip(NO_GOLDEN)
    return folder


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
