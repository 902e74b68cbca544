"""Code the STFT features in 8 bits for storage.

Levels (nepers) are uint8 steps over [LOW, HIGH]; values outside are clipped. The floor lies at log(1e-3) = -6.9, in the
ear away from the source up to 3 nepers lower (more in 1 % of the bins); full scale is about 5.5. Coherence parts in
[-1, 1] are signed steps of 1/127, offset by 128.
"""

import numpy as np

LOW, HIGH = -10.0, 6.0  # nepers
LEVEL_ERROR = 0.5 * (HIGH - LOW) / 255  # largest error inside the range: 0.031 neper = 0.27 dB
COHERENCE_ERROR = 0.5 / 127  # largest error: 0.0039

_codes = np.arange(256, dtype=np.float32)
_LEVELS = LOW + _codes * np.float32((HIGH - LOW) / 255)
_COHERENCES = np.clip((_codes - 128) / 127, -1, 1)


def encode_stft_features(features: np.ndarray) -> np.ndarray:
    """Return the 8-bit code, uint8 [..., 4], of log|L|, log|R|, Re gamma, Im gamma, float [..., 4]."""
    scale = np.array([255 / (HIGH - LOW)] * 2 + [127.0] * 2, np.float32)
    offset = np.array([-LOW * 255 / (HIGH - LOW)] * 2 + [128.0] * 2, np.float32)
    code = np.asarray(features, np.float32) * scale
    code += offset + np.float32(0.5)  # truncation below then rounds to the nearest step
    return np.clip(code, 0, 255, out=code).astype(np.uint8)


def decode_stft_features(code: np.ndarray) -> np.ndarray:
    """Return float32 [..., 4] for a uint8 code [..., 4]; within LEVEL_ERROR and COHERENCE_ERROR of what was encoded."""
    features = np.empty(code.shape, np.float32)
    np.take(_LEVELS, code[..., :2], out=features[..., :2])
    np.take(_COHERENCES, code[..., 2:], out=features[..., 2:])
    return features
