"""Let Ctrl-C end a command line at once, also in the middle of a long computation outside Python."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_LOOK_S = 0.05


def run_interruptibly(function: Callable, *args, **kwargs) -> Any:
    """Call a function in a thread of its own and wait for it, so that KeyboardInterrupt is raised here while it runs.

    Python handles signals between its own instructions: a main thread that waits for XLA would notice none. After an
    interrupt the thread works on; `leave` ends the process nevertheless. Files belong in the main thread, whose
    clean-up runs.
    """
    outcome: list = []

    def work():
        try:
            outcome.extend((True, function(*args, **kwargs)))
        except BaseException as e:
            outcome.extend((False, e))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
    succeeded, value = outcome
    if not succeeded:
        raise value
    return value


def leave(status: int) -> NoReturn:
    """End the process with an exit status; after an interrupt (130) without waiting for other threads."""
    if status != 130:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
