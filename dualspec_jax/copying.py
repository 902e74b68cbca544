"""How near a clip is to the recordings that a model was trained on: the best match of its loudest second."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.fft

from dualspec_jax.ops.mel import log_mel, mel_filters
from dualspec_jax.ops.stft import stft
from dualspec_jax.ops.texture import RANGE_NEPERS, pool_frames
from dualspec_jax.spatial.scene import fit_event, load_clip

POOL = 2  # frames of the log-mel averaged before comparing
SECONDS = 1.0  # compared at once
SILENT_NEPERS = 0.1  # standard deviation of the cells of a second, below which there is nothing in it


class CopyIndex:
    """Log-mels of training recordings, ready to be searched.

    The similarity of two seconds is the correlation coefficient of their log-mel cells, those more than RANGE_NEPERS
    below the clip's loudest counting as that: 1 for a copy at any level. It has no absolute scale, since steady sounds
    of one kind correlate without being copies: compare with that of recordings which were not trained on.

    Args:
      mels: log-mels of mono content, nepers, [K, T, M].
      frames_per_second: of `mels`.

    Source: nearest neighbours in the training set, as in Carlini et al. 2023 (arXiv:2301.13188); the measure is ours.
    """

    def __init__(self, mels: np.ndarray, frames_per_second: float):
        bank = _prepare(mels)
        bank = bank - bank.mean(axis=(1, 2), keepdims=True)  # of no effect but on rounding
        self._count, frames, bands = bank.shape
        self._width = min(frames, round(SECONDS * frames_per_second / POOL))
        self._size = scipy.fft.next_fast_len(frames, real=True)
        self._starts = frames - self._width + 1
        self._spectra = scipy.fft.rfft(bank.astype(np.float32), self._size, axis=1)
        cells = self._width * bands
        mean, square = self._sums(bank.sum(-1)) / cells, self._sums((bank**2).sum(-1)) / cells
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        # Silence, which has no pattern, is like nothing.
        self._spread = np.where(deviation < SILENT_NEPERS, np.inf, deviation * np.sqrt(cells))

    def _sums(self, x: np.ndarray) -> np.ndarray:
        total = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1, dtype=np.float64)], axis=1)
        return total[:, self._width :] - total[:, : -self._width]

    def similarity(self, mel: np.ndarray) -> float:
        """Return the highest similarity of the loudest second of a clip, [T, M], to any second of any recording."""
        x = _prepare(mel[None])[0]
        energy = np.convolve(np.exp(2.0 * x).sum(-1), np.ones(self._width), "valid")
        start = int(np.argmax(energy))
        patch = x[start : start + self._width]
        patch = patch - patch.mean()
        spectrum = scipy.fft.rfft(patch.astype(np.float32), self._size, axis=0)
        product = np.einsum("kfm,fm->kf", self._spectra, spectrum.conj())
        match = scipy.fft.irfft(product, self._size, axis=1)[:, : self._starts]
        return float(np.max(match / self._spread) / max(np.linalg.norm(patch), 1e-6))


def _prepare(mels: np.ndarray) -> np.ndarray:
    pooled = np.asarray(pool_frames(mels, POOL))
    return np.maximum(pooled, pooled.max(axis=(1, 2), keepdims=True) - RANGE_NEPERS)


def load_copy_index(root: Path, labels: Sequence[str], audio) -> CopyIndex:
    """Return the index of all `train` recordings of some labels in <root>/events, cut as for training.

    Raises:
      ValueError: no events/metadata.csv, or no such recording.
    """
    path = Path(root) / "events" / "metadata.csv"
    if not path.is_file():
        raise ValueError(f"data = {str(root)!r}: no events/metadata.csv there")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [r for r in csv.DictReader(file) if r.get("split") == "train" and r["label"] in labels]
    if not rows:
        raise ValueError(f"{path} has no recording of {', '.join(labels)} in split train")
    filters = mel_filters(audio)
    size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    mels = []
    for i, row in enumerate(rows):
        clip = fit_event(load_clip(path.parent / row["file"]), audio.n_samples, np.random.default_rng(i))
        mels.append(np.asarray(log_mel(stft(clip[None, :, None], **size), filters, audio.mel_floor))[0, ..., 0])
    return CopyIndex(np.stack(mels), audio.sample_rate / audio.hop_length)
