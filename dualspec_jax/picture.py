"""Draw spectrograms as pictures: left ear over right ear, low frequencies at the bottom."""

import os
from pathlib import Path

import numpy as np

_MIN_HEIGHT = 128  # pixels of one panel; spectrograms with fewer bands are enlarged by a whole factor
_GAP = 4  # pixels between panels


def spectrogram_image(mel: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Draw a spectrogram as uint8 [H, W, 3], one panel per channel, from top to bottom.

    With a reference, each row holds the reference on the left and `mel` on the right, on the same colour scale: that
    of the reference.

    Args:
      mel: [T, M, C], log magnitude in nepers; channel 0 is the left ear.
      reference: [T', M, C], or None.

    Raises:
      ValueError: not three axes, or bands or channels differ from the reference's.
    """
    mel = np.asarray(mel, np.float32)
    columns = [mel] if reference is None else [np.asarray(reference, np.float32), mel]
    for x in columns:
        if x.ndim != 3 or x.shape[1:] != mel.shape[1:]:
            raise ValueError(f"spectrogram of shape {x.shape}: must be [T, M, C], alike but for T in reference and mel")
    finite = columns[0][np.isfinite(columns[0])]
    low, high = np.percentile(finite, (1.0, 99.9)) if finite.size else (0.0, 1.0)
    span = max(float(high - low), 1e-6)
    factor = max(1, -(-_MIN_HEIGHT // mel.shape[1]))
    rows = []
    for channel in range(mel.shape[2]):
        panels = []
        for x in columns:
            level = np.nan_to_num(np.clip((x[..., channel].T[::-1] - low) / span, 0.0, 1.0))
            panels += [_colour(level).repeat(factor, axis=0).repeat(factor, axis=1)]
        rows += [_join(panels, axis=1)]
    return _join(rows, axis=0)


def _colour(level: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps  # slow to import; pyplot is not needed

    return colormaps["magma"](level, bytes=True)[..., :3]


def _join(panels: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(panels[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(parts, axis=axis)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 [H, W, 3] image; the file appears whole or not at all."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
