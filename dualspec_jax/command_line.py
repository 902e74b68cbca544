"""Run a command line's main: a user's mistake is one line on stderr and exit status 2, a bug keeps its traceback."""

import errno
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parse absl flags, call `main(argv)` and exit.

    Exit status 2: a wrong flag or config, a ValueError that this project's code raised about its input, a file that
    cannot be opened. 1: training that broke down (FloatingPointError), a full disk. 130: Ctrl-C. Other exceptions are
    bugs and pass through.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except FloatingPointError as e:
            _fail(e, 1)
        except OSError as e:
            _fail(e, 1 if e.errno == errno.ENOSPC else 2)  # config_flags reports a config file it cannot load as this
        except ValueError as e:
            if "No space left on device" in str(e):  # of TensorStore, which writes checkpoints
                _fail(OSError(errno.ENOSPC, "No space left on device"), 1)
            if not _is_message(e):
                raise
            _fail(e, 2)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError) as e:
        _fail(e, 2, "unknown field in an override: ")
    except Exception as e:  # config_flags lets through whatever a config file or an override raises
        _fail(e, 2)


def _is_message(error: ValueError) -> bool:
    """True if our own code raised it, not NumPy or JAX under it; a note is JAX's sign of removed frames."""
    if getattr(error, "__notes__", None):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("dualspec_jax", "data", "configs", "__main__")


def _fail(error: BaseException, status: int, prefix: str = "") -> NoReturn:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = (
        text.replace("\\n", " ").replace("\\'", "'").replace("''", "'")
    )  # ml_collections quotes a KeyError in another
    print(f"error: {prefix}{' '.join(text.split()) or type(error).__name__}", file=sys.stderr)
    sys.exit(status)
