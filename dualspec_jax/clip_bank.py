"""Read a bank of mono events, trimmed and at one loudness, for scenes that are rendered while training.

`python -m data.clip_bank` writes it: `samples.npy` int16 with all events end to end, `index.npz` with where each starts
and its label and split, `labels.json`. The samples are mapped, not read, so that memory does not grow with the bank.
"""

import json
from pathlib import Path

import numpy as np

from dualspec_jax.spatial.scene import place_event

SAMPLES, INDEX, LABELS = "samples.npy", "index.npz", "labels.json"


class ClipBank:
    """Give random access to the events of one split. It can be pickled.

    Attributes:
      labels: names that `label_index` counts in; those of all splits.
      label_index: int32 [n].

    Raises:
      ValueError: there is no bank, or it has no event of the split.
    """

    def __init__(self, folder, split: str):
        self.folder = Path(folder)
        if not (self.folder / LABELS).is_file():
            raise ValueError(f"clip_bank = {str(folder)!r} holds no clip bank: run python -m data.clip_bank first")
        self.labels = tuple(json.loads((self.folder / LABELS).read_text(encoding="utf-8")))
        index = np.load(self.folder / INDEX)
        chosen = np.flatnonzero(index["is_valid"] == (split == "valid"))
        if not len(chosen):
            raise ValueError(f"clip_bank = {str(folder)!r}: it has no clip with split = {split!r}")
        self.label_index = index["label_index"][chosen].astype(np.int32)
        self._start, self._stop = index["start"][chosen], index["start"][chosen + 1]
        self._samples = None

    def __len__(self) -> int:
        return len(self.label_index)

    def __getstate__(self):
        return self.__dict__ | {"_samples": None}

    def __getitem__(self, i: int) -> np.ndarray:
        """Return one event, float32 [n]."""
        if self._samples is None:
            self._samples = np.load(self.folder / SAMPLES, mmap_mode="r")
        return self._samples[self._start[i] : self._stop[i]].astype(np.float32) / 32767.0

    def place(self, i: int, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return an event cut, looped or repeated to n_samples, up to 6 dB softer, float32 [n_samples]."""
        gain = np.float32(10 ** (rng.uniform(-6.0, 0.0) / 20))
        return place_event(self[i], n_samples, rng) * gain
