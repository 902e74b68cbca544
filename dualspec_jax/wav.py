"""Write results whole or not at all."""

import os
import tempfile
import wave
from pathlib import Path

import numpy as np


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
    """Return int16 of a waveform in [-1, 1]; louder clips are scaled down to full scale, never clipped."""
    peak = float(np.max(np.abs(waveform), initial=0.0))
    return np.round(waveform * (32767.0 / max(peak, 1.0))).astype("<i2")


def write_atomically(path: Path, write) -> None:
    """Call write(binary file) on a temporary file beside path, then rename it; on any failure leave nothing.

    Raises:
      ValueError: naming path and the operating system's reason (no such folder, read-only, disk full).
    """
    partial = None
    try:
        fd, partial = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
        with os.fdopen(fd, "wb") as f:
            write(f)
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


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write float [N, C] as 16-bit PCM WAV.

    Raises:
      ValueError: the file cannot be written.
    """
    pcm = to_pcm16(waveform)

    def write(f):
        with wave.open(f, "wb") as w:
            w.setnchannels(pcm.shape[1])
            w.setsampwidth(2)
            w.setframerate(sample_rate)
            w.writeframes(pcm.tobytes())

    write_atomically(path, write)


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Return (float32 [N, C], sample rate) of a 16-bit PCM WAV."""
    with wave.open(str(path), "rb") as w:
        pcm = np.frombuffer(w.readframes(w.getnframes()), "<i2").reshape(-1, w.getnchannels())
        return pcm.astype(np.float32) / 32767.0, w.getframerate()
