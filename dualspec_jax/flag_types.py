"""What several command lines share: readers of flags, warnings, how mistakes end. Imports no JAX: --help is quick."""

import argparse
import sys
from collections.abc import Callable

from dualspec_jax.config import branch_guidance


def parse_guidance(text: str) -> tuple[float, float]:
    """Read "MEL" or "MEL,STFT"; see `config.branch_guidance`."""
    try:
        parts = [float(part) for part in text.split(",")]
        return branch_guidance(parts[0] if len(parts) == 1 else tuple(parts))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: one or two numbers in [0, 100], as in 4 or 4,3") from e


def warn(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace, interrupted: str = "") -> int:
    """Return the exit status of work(args): 2 and one line on stderr for a ValueError, 130 for Ctrl-C.

    Args:
      interrupted: how to go on after Ctrl-C, told on stderr.
    """
    try:
        return work(args)
    except ValueError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("; ".join(["interrupted", interrupted] if interrupted else ["interrupted"]), file=sys.stderr)
        return 130
