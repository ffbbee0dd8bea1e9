"""Running a script of eval/ as one or several processes, as ``accelerate launch`` does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch(script: str, arguments: list[str], processes: int) -> list[subprocess.CompletedProcess]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "VISTOK_OFFLINE": "1",
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        command = [sys.executable, str(ROOT / "eval" / script), *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    done = []
    for process in started:
        output, errors = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    return done
