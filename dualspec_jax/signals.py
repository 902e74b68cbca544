"""Turn SIGTERM and SIGINT into a request to stop after the current step."""

import signal
import threading
from typing import Any

import jax
import numpy as np

_AGREE_EVERY = 10  # steps between two looks at the other processes; each one waits for the devices


class StopSignals:
    """Context in which SIGTERM and SIGINT are noted; after the first, SIGINT has its usual effect, SIGTERM none.

    Schedulers may send SIGTERM to a process and to its group; the second one must not end the save.

    Outside the main thread, where Python allows no handlers, nothing is noted.

    Attributes:
      number: of the signal that came, or None.
    """

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.number = number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    @property
    def at_once(self) -> bool:
        """True if a signal came and no other process has to agree."""
        return self.number is not None and jax.process_count() == 1

    def agreed(self, step: int) -> bool:
        """True if a signal came to any process; with several, they look every few steps and all see the same."""
        if jax.process_count() == 1:
            return self.number is not None
        if step % _AGREE_EVERY:
            return False
        from jax.experimental import multihost_utils

        highest = int(np.max(multihost_utils.process_allgather(np.int32(self.number or 0))))
        if highest:
            self.number = highest
        return highest > 0
