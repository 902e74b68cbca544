"""Build a scene: one mono clip cleaned, fitted to the length of a scene, and placed in a direction."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
import soundfile
from jaxtyping import Array, Float

from dualspec_jax.spatial.hrtf import Hrtf

SAMPLE_RATE = 16000  # Hz, of everything here
FRAME, HOP = 320, 160  # 20 ms and 10 ms
ACTIVE_RANGE_DB = 40.0  # a frame is active within this of the loudest one
TARGET_RMS = 10 ** (-24 / 20)  # of the active frames
PEAK_LIMIT = 0.7
FADE = 160  # 10 ms
STEADY_S = 2.0  # clips at least this long whose ends sound are continued without a gap
SPEEDS = ((12, 13), (14, 15), (16, 17), (20, 21), (1, 1), (21, 20), (17, 16), (15, 14), (13, 12))  # up, down


def load_clip(path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Read a mono clip, float32 [n].

    Raises:
      ValueError: naming the file, if it cannot be read, has another sample rate, more than one channel, no samples,
        samples that are not finite, or only zeros.
    """
    try:
        audio, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if rate != sample_rate:
        raise ValueError(f"{path} has a sample rate of {rate} Hz: it must be {sample_rate}")
    if audio.shape[1] != 1:
        raise ValueError(f"{path} has {audio.shape[1]} channels: it must have 1")
    mono = audio[:, 0]
    if not len(mono):
        raise ValueError(f"{path} is empty")
    if not np.all(np.isfinite(mono)):
        raise ValueError(f"{path} holds samples that are not finite")
    if not np.any(mono):
        raise ValueError(f"{path} holds only zeros")
    return mono


def vary(mono: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change speed and pitch together by a random ratio from 12/13 to 13/12."""
    up, down = SPEEDS[rng.integers(len(SPEEDS))]
    return mono if up == down else scipy.signal.resample_poly(mono, up, down).astype(np.float32)


def fit_event(mono: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a clip of exactly n_samples with a normal loudness and little silence, float32 [n_samples].

    Silence at the ends and long digital silence inside are cut; the active frames are brought to -24 dBFS unless that
    lifts the peak over 0.7. A longer clip is cut to a random window among its louder ones; a shorter one is repeated,
    with random gaps, or, where it is steady, with short crossfades.

    Raises:
      ValueError: if the clip is all zero.
    """
    event = normalise(trim(mono))
    if len(event) > n_samples:
        start = _window_start(event, n_samples, rng)
        return _faded(event[start : start + n_samples])
    if len(event) >= STEADY_S * SAMPLE_RATE and _ends_are_active(event):
        return _loop(event, n_samples, rng)
    return _repeat(event, n_samples, rng)


def active_frames(mono: np.ndarray) -> np.ndarray:
    """Tell for each 20 ms frame, every 10 ms, whether it lies within 40 dB of the loudest, bool [n_frames]."""
    power = _frame_power(mono)
    return power > power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)


def trim(mono: np.ndarray) -> np.ndarray:
    """Cut silence at the ends, with 10 ms fades, and shorten inner digital silence over 0.5 s to 0.3 s.

    Raises:
      ValueError: if the clip is all zero.
    """
    mono = np.asarray(mono, np.float32)
    if not np.any(mono):
        raise ValueError("the clip holds only zeros")
    mono = _shorten_silence(mono)
    active = np.flatnonzero(active_frames(mono))
    start = max(0, active[0] * HOP - FADE)  # the fade lies before the first active frame and spares its onset
    return _faded(mono[start : active[-1] * HOP + FRAME + FADE])


def normalise(mono: np.ndarray) -> np.ndarray:
    """Scale so that the active frames have an RMS of -24 dBFS, or the peak is 0.7 if that is quieter."""
    power = _frame_power(mono)
    rms = math.sqrt(power[active_frames(mono)].mean())
    return (mono * min(TARGET_RMS / rms, PEAK_LIMIT / np.abs(mono).max())).astype(np.float32)


def render(mono: np.ndarray, azimuth_deg: float, hrtf: Hrtf) -> np.ndarray:
    """Place a mono clip in a horizontal direction, float32 [N, 2]: its convolution with both ears, cut to N samples."""
    ears = hrtf.at(azimuth_deg)
    return scipy.signal.fftconvolve(mono[None], ears, axes=-1)[:, : len(mono)].T.astype(np.float32)


@jax.jit
def render_batch(mono: Float[Array, "B N"], hrir: Float[Array, "B 2 K"]) -> Float[Array, "B N 2"]:
    """Convolve each clip with both ears of its direction, cut to N samples; as `render`, on the device."""
    n = mono.shape[-1]
    n_fft = _fast_length(n + hrir.shape[-1] - 1)
    spectrum = jnp.fft.rfft(mono, n_fft)[:, None] * jnp.fft.rfft(hrir, n_fft)
    return jnp.swapaxes(jnp.fft.irfft(spectrum, n_fft)[..., :n], 1, 2)


def _fast_length(n: int) -> int:
    return scipy.fft.next_fast_len(n, real=True)


def _frame_power(mono: np.ndarray) -> np.ndarray:
    """Return the mean power of 20 ms frames, every 10 ms; the last frames are padded with zeros."""
    n_frames = max(1, math.ceil((len(mono) - FRAME) / HOP) + 1)
    padded = np.zeros((n_frames - 1) * HOP + FRAME)
    padded[: len(mono)] = mono
    halves = np.sum(padded.reshape(-1, HOP) ** 2, axis=1)
    return (halves[:-1] + halves[1:]) / FRAME


def _faded(mono: np.ndarray, fade: int = FADE) -> np.ndarray:
    """Return a copy whose ends rise from and fall to zero."""
    fade = min(fade, len(mono) // 4)
    mono = mono.copy()
    if fade:
        ramp = np.sin(0.5 * np.pi * np.arange(1, fade + 1) / (fade + 1)).astype(np.float32) ** 2
        mono[:fade] *= ramp
        mono[-fade:] *= ramp[::-1]
    return mono


def _shorten_silence(mono: np.ndarray) -> np.ndarray:
    """Cut runs of digital silence (below one step of 16 bits) longer than 0.5 s down to 0.3 s."""
    silent = np.concatenate([[False], np.abs(mono) < 1 / 32768, [False]])
    edges = np.flatnonzero(np.diff(silent))
    keep = np.ones(len(mono), bool)
    for start, stop in edges.reshape(-1, 2):
        if stop - start > 0.5 * SAMPLE_RATE:
            margin = int(0.15 * SAMPLE_RATE)
            keep[start + margin : stop - margin] = False
    return mono[keep]


def _window_start(event: np.ndarray, n_samples: int, rng: np.random.Generator) -> int:
    """Draw the start of a window whose energy is within 3 dB of the loudest window's."""
    total = np.concatenate([[0.0], np.cumsum(event.astype(np.float64) ** 2)])
    starts = np.arange(0, len(event) - n_samples + 1, HOP)
    energy = total[starts + n_samples] - total[starts]
    return int(rng.choice(starts[energy >= 0.5 * energy.max()]))


def _ends_are_active(event: np.ndarray) -> bool:
    """Tell whether the first and last 0.1 s (past the fades) lie within 15 dB of the mean of the active frames."""
    power = _frame_power(event)
    mean = power[active_frames(event)].mean() * 10 ** (-15 / 10)
    return power[2:12].mean() > mean and power[-12:-2].mean() > mean


def _loop(event: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Continue a steady sound by itself with crossfades of 50 ms, from a random place in it."""
    fade = int(0.05 * SAMPLE_RATE)
    event = event[FADE:-FADE]  # without the fades of `trim`
    ramp = np.sqrt((np.arange(fade) + 0.5) / fade).astype(np.float32)  # equal power: the two sides are unrelated
    cycle = event[:-fade].copy()
    cycle[:fade] = cycle[:fade] * ramp + event[-fade:] * ramp[::-1]
    start = int(rng.integers(len(cycle)))
    return _faded(np.resize(np.roll(cycle, -start), n_samples))


def _repeat(event: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Repeat an event with random gaps; the first starts within 0.4 s, and a last one that hardly begins is left out.

    Gaps are 0.1 to 0.6 s, but shorter after short events, so that at least about 40 % of the frames sound.
    """
    longest_gap = min(0.6, max(0.15, 1.5 * len(event) / SAMPLE_RATE))
    out = np.zeros(n_samples, np.float32)
    slack = max(0, n_samples - len(event))
    position = int(rng.uniform(0.0, min(0.4 * SAMPLE_RATE, slack)))
    while position < n_samples:
        piece = event[: n_samples - position]
        if len(piece) < min(len(event), max(0.3 * len(event), 0.25 * SAMPLE_RATE)):
            break
        out[position : position + len(piece)] = piece if len(piece) == len(event) else _faded(piece)
        position += len(event) + int(rng.uniform(0.1, longest_gap) * SAMPLE_RATE)
    return out
