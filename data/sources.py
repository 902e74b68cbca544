"""Read a folder of labelled mono clips: `metadata.csv` and the audio files that it names."""

import collections
import csv
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dualspec_jax.spatial.scene import load_clip

REQUIRED = ("file", "label", "split", "licence")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Hold one row of metadata.csv.

    Attributes:
      path: of the audio file.
      file: the path as written in metadata.csv, below its folder.
      label: class, as plain words ("dog barking").
      split: `train` or `valid`.
      licence: as stated by the collection.
      source_group: recordings with the same value come from one source; `file` where the column is missing or empty.
    """

    path: Path
    file: str
    label: str
    split: str
    licence: str
    source_group: str


def read_metadata(path) -> list[Recording]:
    """Read metadata.csv; audio paths are relative to its folder.

    Raises:
      ValueError: naming the file and the missing column, the row with an empty or unknown value, or that there is no
        row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the source folder must hold events/metadata.csv")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV file: {error}") from error
    for column in REQUIRED:
        if column not in columns:
            raise ValueError(f"{path} lacks the column {column!r}; it has {', '.join(columns) or 'none'}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    recordings = []
    for number, row in enumerate(rows, start=2):
        for column in ("file", "label", "split"):
            if not (row[column] or "").strip():
                raise ValueError(f"{path}, line {number}: column {column!r} is empty")
        if row["split"] not in ("train", "valid"):
            raise ValueError(f"{path}, line {number}: split = {row['split']!r}, it must be train or valid")
        recordings.append(
            Recording(
                path=path.parent / row["file"],
                file=row["file"],
                label=row["label"].strip(),
                split=row["split"],
                licence=row["licence"] or "not stated",
                source_group=row.get("source_group") or row["file"],
            )
        )
    return recordings


def load_clips(
    recordings: Sequence[Recording], load: Callable[[Path], np.ndarray] = load_clip
) -> tuple[list[Recording], list[np.ndarray]]:
    """Load every clip; unusable ones are skipped and reported in one warning.

    Returns:
      The recordings that could be used, and their clips, float32 [n] each.

    Raises:
      ValueError: if none is left.
    """
    kept, clips, problems = [], [], []
    for recording in recordings:
        try:
            clips.append(load(recording.path))
            kept.append(recording)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  ..." if len(problems) > 20 else "")
        _log.warning("skipped %d of %d clips:\n  %s", len(problems), len(recordings), shown)
    if not kept:
        raise ValueError(f"no usable clip is left of {len(recordings)}" + (f": {problems[0]}" if problems else ""))
    return kept, clips


def count_labels(recordings: Sequence[Recording]) -> dict[str, int]:
    """Return the number of recordings of each label, sorted by label."""
    return dict(sorted(collections.Counter(r.label for r in recordings).items()))
