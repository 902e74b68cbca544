"""How well clips fit their captions by CLAP, a pretrained model of audio and text; needs the extra `clap`.

The model is read from a local folder, nothing is downloaded.

Source: Wu et al. 2023 (arXiv:2211.06687); the score is the cosine of the two embeddings.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.signal

CLAP_RATE = 48000  # Hz


class ClapJudge:
    """A CLAP model in a folder, as `transformers` saves it.

    Raises:
      ValueError: no such folder, `transformers` or PyTorch is not installed, or the folder holds no CLAP model.
    """

    def __init__(self, path: Path):
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"clap = {str(path)!r}: no config.json there; give the folder of a CLAP model")
        try:
            import torch
            from transformers import ClapModel, ClapProcessor
        except ImportError as e:
            raise ValueError(f"clap: needs transformers and torch, pip install '.[clap]' ({e})") from e
        try:
            self._model = ClapModel.from_pretrained(str(path), local_files_only=True).eval()
            self._processor = ClapProcessor.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as e:
            raise ValueError(f"clap = {str(path)!r}: not a CLAP model ({e})") from e
        self._torch = torch

    def embed_audio(self, waveforms: np.ndarray, sample_rate: int) -> np.ndarray:
        """Return unit embeddings [n, D] of two-ear clips [n, N, 2], the louder ear of each."""
        ears = np.argmax(np.sum(np.square(waveforms, dtype=np.float64), axis=1), axis=1)
        mono = [
            scipy.signal.resample_poly(w[:, e], CLAP_RATE, sample_rate) for w, e in zip(waveforms, ears, strict=True)
        ]
        inputs = self._processor(audio=mono, sampling_rate=CLAP_RATE, return_tensors="pt")
        with self._torch.no_grad():
            return _unit(self._model.get_audio_features(**inputs))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit embeddings [n, D] of captions."""
        inputs = self._processor(text=list(texts), return_tensors="pt", padding=True)
        with self._torch.no_grad():
            return _unit(self._model.get_text_features(**inputs))

    def scores(self, waveforms: np.ndarray, sample_rate: int, texts: Sequence[str]) -> np.ndarray:
        """Return the cosine in [-1, 1] of each clip with its caption [n]."""
        return np.sum(self.embed_audio(waveforms, sample_rate) * self.embed_text(texts), axis=-1)


def _unit(features) -> np.ndarray:
    features = getattr(features, "pooler_output", features)  # transformers 5 wraps the tensor
    x = np.asarray(features, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
