"""What several command lines share: choices, readers of flags, warnings. Imports no JAX, so that --help is quick."""

import argparse
import math
import sys

VOCODERS = ("griffin_lim", "griffin_lim_stft")  # generate.VOCODERS


def parse_guidance(text: str) -> tuple[float, float]:
    """Read "MEL" or "MEL,STFT"; one number drives the Mel branch and leaves STFT at the smaller of it and 3."""
    parts = [float(p) for p in text.split(",")]
    if len(parts) > 2 or not all(math.isfinite(p) and 0 <= p <= 100 for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: one or two numbers in [0, 100], as in 4 or 4,3")
    return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], min(parts[0], 3.0))


def warn(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)
