"""What the processes of a long evaluation have measured so far, kept in a folder: a killed one goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vistok.files import claim_settings, whole_file
from vistok.metrics.processes import main_first

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_SHARE = 20  # at most one part in so many of the time is spent on writing


class KeptState:
    """The state of one process, and the settings that all of them share.

    Args:
        folder: is made where it is missing; one with other settings is refused.
        name: of the files in it.
        settings: all that what is measured depends on.
        seconds: between two states.
        accelerator: says which process this is.
    Raises:
        VistokError: the folder is another evaluation's; the message says what differs.
        DataError: its settings cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        seconds: float,
        accelerator: Accelerator | None = None,
    ) -> None:
        rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        self.folder, self.seconds = Path(folder), seconds
        self._path = self.folder / f"{name}-{rank:05d}-of-{processes:05d}.npz"
        facts = json.loads(json.dumps({**settings, "processes": processes}))
        main_first(lambda: claim_settings(self.folder / f"{name}.json", facts, holds="another evaluation"), accelerator)
        self._next = time.monotonic() + seconds

    def load(self) -> dict[str, np.ndarray] | None:
        """What ``save`` has written; None where there is nothing yet. A damaged file is said, and not used."""
        if not self._path.is_file():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # whatever zipfile and numpy raise for a damaged file
            logger.warning("%s is damaged (%s): this process begins anew", self._path, error or type(error).__name__)
            return None

    def save(self, make: Callable[[], Mapping[str, np.ndarray]], *, now: bool = False) -> None:
        """Write what ``make`` gives, whole or not at all, if it is time to, or ``now``."""
        began = time.monotonic()
        if not now and began < self._next:
            return
        with whole_file(self._path) as file:
            np.savez(file, **make())
        ended = time.monotonic()
        self._next = ended + max(self.seconds, _SHARE * (ended - began))
