"""Models on another device than the CPU, on machines that have none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration


def test_nothing_mixes_devices() -> None:
    """In a process of its own, where a device is simulated: see ``another_device.py``."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch simulates no device")
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder / part) for part in ("generate", "models"))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "another_device",
        "-p",
        "no:cacheprovider",
        "device_cases.py",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
