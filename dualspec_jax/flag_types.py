"""What several command lines share: readers of flags, warnings. Imports no JAX, so that --help is quick."""

import argparse
import sys

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
