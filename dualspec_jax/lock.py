"""Keep two runs out of one folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold <folder>/lock while the context lasts; the folder is made. It is free when the process ends, even killed.

    Of several processes of one run, the first holds it. On a file system without locks nothing is kept out.

    Raises:
      ValueError: another process holds it.
    """
    if jax.process_index() != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process works in this folder; stop it or take another one") from None
        except OSError:
            pass
        yield
