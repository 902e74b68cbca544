"""Write results whole or not at all."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

PEAK = 0.98  # of scenes that are rendered or generated: a louder one is scaled down to it
FORMATS = {"wav": ("WAV", "PCM_16"), "wav_float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16")}


def suffix_of(format: str | None) -> str:
    """Return the file name's suffix of a format; None is the default, WAV."""
    return ".flac" if format == "flac" else ".wav"


def peak_gain(waveform: np.ndarray) -> float:
    """Return the gain, at most 1, that keeps a waveform within PEAK."""
    return min(1.0, PEAK / max(float(np.abs(waveform).max()), 1e-9))


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
    """Return int16 of a waveform in [-1, 1]; louder clips are scaled down to full scale, never clipped."""
    peak = float(np.max(np.abs(waveform), initial=0.0))
    return np.round(waveform * (32767.0 / max(peak, 1.0))).astype("<i2")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a temporary file beside path, renamed to it at the end; on any failure nothing is left.

    Raises:
      ValueError: naming path and the operating system's reason (no such folder, read-only, disk full).
    """
    partial = None
    try:
        fd, partial = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        partial = None
    except OSError as e:
        raise ValueError(f"cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)


def write_atomically(path: Path, write) -> None:
    """Call write(binary file) in an `atomic_file`."""
    with atomic_file(path) as f:
        write(f)


def encode_audio(waveform: np.ndarray, sample_rate: int, format: str = "wav") -> bytes:
    """Return float [N, C] as the bytes of an audio file.

    Args:
      format: "wav" and "flac" hold 16 bits, louder clips than full scale scaled down; "wav_float" the numbers as are.

    Raises:
      ValueError: unknown format.
    """
    import soundfile

    if format not in FORMATS:
        raise ValueError(f"format = {format!r}: must be one of {', '.join(FORMATS)}")
    container, subtype = FORMATS[format]
    samples = np.asarray(waveform, np.float32) if subtype == "FLOAT" else to_pcm16(waveform)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format=container, subtype=subtype)
    return buffer.getvalue()


def write_audio(path: Path, waveform: np.ndarray, sample_rate: int, format: str = "wav") -> None:
    """Write float [N, C] as an audio file; see `encode_audio`.

    Raises:
      ValueError: unknown format, or the file cannot be written.
    """
    content = encode_audio(waveform, sample_rate, format)
    write_atomically(path, lambda f: f.write(content))


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write float [N, C] as 16-bit PCM WAV.

    Raises:
      ValueError: the file cannot be written.
    """
    write_audio(path, waveform, sample_rate)


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Return (float32 [N, C], sample rate) of a 16-bit PCM WAV."""
    import soundfile

    pcm, rate = soundfile.read(str(path), dtype="int16", always_2d=True)
    return pcm.astype(np.float32) / 32767.0, rate
