"""Stereo WAV files of any system, with the azimuths they were made for."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

_TRUE_AZIMUTH = re.compile(r"(?:^|_)true(-?\d+(?:\.\d+)?)(?=_|$)")


@dataclass(frozen=True)
class WavClip:
    """A file to measure.

    Attributes:
      azimuth_deg: what was asked for, in [0, 360).
      label: what should be heard, "" if unknown.
    """

    index: int
    path: Path
    azimuth_deg: float
    label: str


def list_clips(folder: Path, table: Path | None = None) -> list[WavClip]:
    """Return the WAV files of a folder with their azimuths.

    Args:
      table: CSV with the columns file (below the folder) and azimuth_deg, and label if known; only its files are
        measured. None reads every azimuth from the file name, as in `dog_true210_3.wav`.

    Raises:
      ValueError: no such folder or table, no WAV file, a missing column or file, or an azimuth that is missing or not
        a number in (-360, 360].
    """
    if not folder.is_dir():
        raise ValueError(f"wav-dir = {str(folder)!r}: no such folder")
    if table is None:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".wav")
        if not paths:
            raise ValueError(f"wav-dir = {str(folder)!r}: no WAV file there")
        rows = []
        for path in paths:
            match = _TRUE_AZIMUTH.search(path.stem)
            if not match:
                rule = "its name must hold its azimuth, as in dog_true210_3.wav, or give --azimuths CSV"
                raise ValueError(f"{path}: {rule}")
            rows.append((path, match[1], ""))
    else:
        if not table.is_file():
            raise ValueError(f"azimuths = {str(table)!r}: no such file")
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in ("file", "azimuth_deg"):
                if column not in (reader.fieldnames or ()):
                    raise ValueError(f"{table} lacks the column {column!r}")
            rows = [(folder / row["file"], row["azimuth_deg"], row.get("label") or "") for row in reader]
        if not rows:
            raise ValueError(f"{table} has no rows")
        for path, *_ in rows:
            if not path.is_file():
                raise ValueError(f"{table}: no file {path}")
    clips = []
    for i, (path, text, label) in enumerate(rows):
        try:
            azimuth = float(text)
        except (TypeError, ValueError):
            azimuth = math.nan
        if not -360.0 < azimuth <= 360.0:
            raise ValueError(f"{path}: azimuth_deg = {text!r}: must be a number in (-360, 360]")
        clips.append(WavClip(i, path, azimuth % 360.0, label))
    return clips


def read_stereo(path: Path, sample_rate: int, n_samples: int) -> np.ndarray:
    """Read a stereo file at any sample rate as float32 [n_samples, 2].

    A shorter clip is filled up with silence; of a longer one the window with the largest energy is taken.

    Raises:
      ValueError: the file cannot be read, is empty, has not two channels, or holds values that are not finite.
    """
    try:
        audio, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if audio.shape[1] != 2:
        raise ValueError(f"{path} has {audio.shape[1]} channel{'s' * (audio.shape[1] > 1)}: it must have 2 (stereo)")
    if not len(audio) or not np.all(np.isfinite(audio)):
        raise ValueError(f"{path} is empty or holds values that are not finite")
    if rate != sample_rate:
        divisor = math.gcd(rate, sample_rate)
        audio = scipy.signal.resample_poly(audio, sample_rate // divisor, rate // divisor, axis=0)
    energy = np.concatenate([[0.0], np.cumsum(np.sum(audio**2, axis=1))])
    start = int(np.argmax(energy[n_samples:] - energy[:-n_samples])) if len(audio) > n_samples else 0
    audio = audio[start : start + n_samples]
    return np.pad(audio, ((0, n_samples - len(audio)), (0, 0))).astype(np.float32)
