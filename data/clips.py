"""Look at every clip once, report those that cannot be used, and load the others when they are needed."""

import collections
import concurrent.futures
import csv
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.sources import Recording
from dualspec_jax.spatial.scene import ClipError, load_clip

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Say why a recording is skipped; `kind` is that of `ClipError`."""

    file: str
    kind: str
    text: str


class Clips(Sequence):
    """Load the clips of recordings by index; the last ones stay in memory. It can be pickled."""

    def __init__(self, recordings: Sequence[Recording]):
        self._paths = [str(r.path) for r in recordings]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return _load(self._paths[index])


@functools.lru_cache(maxsize=128)  # so that memory does not grow with the collection: 128 clips of 10 s are 80 MB
def _load(path: str) -> np.ndarray:
    return load_clip(path)


def find_usable(
    recordings: Sequence[Recording], *, min_peak: float = 1e-3, max_clipped: float | None = 0.01, threads: int = 4
) -> tuple[list[Recording], list[Problem]]:
    """Read every clip and return the recordings that can be used, and the problems of the others.

    Args:
      min_peak, max_clipped: see `load_clip`.

    Raises:
      ValueError: if none is left.
    """

    def look(recording: Recording) -> Problem | None:
        try:
            load_clip(recording.path, min_peak=min_peak, max_clipped=max_clipped)
        except ClipError as error:
            return Problem(recording.file, error.kind, str(error))
        return None

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        bar = {"total": len(recordings), "desc": "looking at clips", "unit": " clips", "leave": False, "delay": 2}
        results = list(tqdm(pool.map(look, recordings), **bar))
    problems = [problem for problem in results if problem]
    kept = [r for r, problem in zip(recordings, results, strict=True) if problem is None]
    if not kept:
        raise ValueError(f"no usable clip is left of {len(recordings)}" + (f": {problems[0].text}" if problems else ""))
    if problems:
        _log.warning("%s", format_problems(problems, len(recordings)))
    return kept, problems


def format_problems(problems: Sequence[Problem], total: int, examples: int = 3) -> str:
    """Return a table: how many clips were skipped for which reason, with a few names each."""
    by_kind = collections.defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem.file)
    lines = [f"skipped {len(problems)} of {total} clips:", f"  {'reason':<12} {'clips':>6}  files"]
    for kind, files in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(files) > examples else ""
        lines.append(f"  {kind:<12} {len(files):>6}  {', '.join(files[:examples])}{more}")
    return "\n".join(lines)


def write_problems(path, problems: Sequence[Problem]) -> None:
    """Write the problems as CSV with the columns file, reason and text."""
    with open(Path(path), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reason", "text"])
        writer.writerows([p.file, p.kind, p.text] for p in problems)
