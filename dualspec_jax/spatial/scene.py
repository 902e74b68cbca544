"""Build a scene: one mono clip cleaned, fitted to the length of a scene, and placed in a direction."""

import math

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
TARGET_LUFS = -24.0
PEAK_LIMIT = 0.7
FADE = 160  # 10 ms
STEADY_S = 2.0  # clips at least this long whose ends sound are continued without a gap
SPEEDS = ((12, 13), (14, 15), (16, 17), (20, 21), (1, 1), (21, 20), (17, 16), (15, 14), (13, 12))  # up, down


class ClipError(ValueError):
    """A clip that cannot be used; `kind` is unreadable, empty, not finite, silent or clipped."""

    def __init__(self, path, kind: str, text: str):
        super().__init__(f"{path} {text}")
        self.kind = kind


def load_clip(
    path, sample_rate: int = SAMPLE_RATE, *, min_peak: float = 0.0, max_clipped: float | None = None
) -> np.ndarray:
    """Read a clip as mono at `sample_rate`, float32 [n].

    Several channels are averaged; where that would cancel most of the sound, the loudest channel is taken.

    Args:
      min_peak: clips whose largest magnitude is not above this count as silent; full scale is 1.
      max_clipped: largest share of clipped samples (see `clipped_share`); None allows any.

    Raises:
      ClipError: naming the file, if it cannot be read, or is empty, not finite, silent or clipped.
    """
    try:
        audio, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ClipError(path, "unreadable", f"cannot be read: {error}") from error
    if not len(audio):
        raise ClipError(path, "empty", "is empty")
    if not np.all(np.isfinite(audio)):
        raise ClipError(path, "not finite", "holds samples that are not finite")
    if not np.any(audio):
        raise ClipError(path, "silent", "holds only zeros")
    if (peak := float(np.abs(audio).max())) <= min_peak:
        raise ClipError(path, "silent", f"has a peak of {peak:.2g}: it must be above {min_peak:g}")
    if max_clipped is not None and (share := clipped_share(audio)) > max_clipped:
        raise ClipError(path, "clipped", f"has {100 * share:.1f} % clipped samples: at most {100 * max_clipped:g} %")
    mono = audio[:, 0]
    if audio.shape[1] > 1:
        power = np.mean(audio**2, axis=0)
        mono = audio.mean(axis=1)
        if np.mean(mono**2) < 0.1 * power.mean():
            mono = audio[:, int(np.argmax(power))]
    if rate != sample_rate:
        import soxr  # only where a clip has another rate

        mono = soxr.resample(mono, rate, sample_rate)
        if not len(mono):
            raise ClipError(path, "empty", "is shorter than one sample")
    return np.ascontiguousarray(mono, np.float32)


def clipped_share(audio: np.ndarray) -> float:
    """Return the share of samples [n, C] in flat tops: 4 or more in a row within 1.5 steps of 16 bits of the peak."""
    flat = (np.abs(audio) >= np.abs(audio).max() - 1.5 / 32768) & (np.abs(audio) > 0.05)
    signed = np.where(flat, np.sign(audio), 0).astype(np.int8)
    run = flat[3:] & (signed[3:] == signed[2:-1]) & (signed[2:-1] == signed[1:-2]) & (signed[1:-2] == signed[:-3])
    inside = np.zeros(audio.shape, bool)
    for shift in range(4):
        inside[shift : shift + len(run)] |= run
    return float(inside.mean())


def vary(mono: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change speed and pitch together by a random ratio from 12/13 to 13/12."""
    up, down = SPEEDS[rng.integers(len(SPEEDS))]
    return mono if up == down else scipy.signal.resample_poly(mono, up, down).astype(np.float32)


def fit_event(mono: np.ndarray, n_samples: int, rng: np.random.Generator, level: str = "rms") -> np.ndarray:
    """Return a clip of exactly n_samples with a normal loudness and little silence, float32 [n_samples].

    Silence at the ends and long digital silence inside are cut; the level is set by `normalise` ("rms") or
    `normalise_loudness` ("lufs"). A longer clip is cut to a random window among its louder ones; a shorter one is
    repeated, with random gaps, or, where it is steady, with short crossfades.

    Raises:
      ValueError: if the clip is all zero, or for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"level = {level!r}: must be one of {', '.join(LEVELS)}")
    return place_event(LEVELS[level](trim(mono)), n_samples, rng)


def place_event(event: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Cut, loop or repeat an event, trimmed and brought to its level, to exactly n_samples; see `fit_event`."""
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


def normalise_loudness(mono: np.ndarray) -> np.ndarray:
    """Scale to an integrated loudness of -24 LUFS, or to a peak of 0.7 if that is quieter.

    A clip shorter than the meter's block of 0.4 s is measured as if it went on by itself.

    Source: ITU-R BS.1770-4, by pyloudnorm.
    """
    import pyloudnorm  # only where data is built

    peak = float(np.abs(mono).max())
    block = int(0.4 * SAMPLE_RATE) + 1
    measured = (mono / peak).astype(np.float64)  # the meter's absolute gate must not cut quiet recordings
    if len(measured) < block:
        measured = np.resize(measured, block)
    loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(measured)  # of the clip at peak 1
    wanted = 10 ** ((TARGET_LUFS - loudness) / 20) if np.isfinite(loudness) else PEAK_LIMIT
    return (mono * (min(wanted, PEAK_LIMIT) / peak)).astype(np.float32)


LEVELS = {"rms": normalise, "lufs": normalise_loudness}


def render(mono: np.ndarray, azimuth_deg: float, hrtf: Hrtf) -> np.ndarray:
    """Place a mono clip in a horizontal direction, float32 [N, 2]: its convolution with both ears, cut to N samples."""
    ears = hrtf.at(azimuth_deg)
    return scipy.signal.fftconvolve(mono[None], ears, axes=-1)[:, : len(mono)].T.astype(np.float32)


def render_sources(mono: Float[Array, "S N"], hrir: Float[Array, "S 2 K"]) -> Float[Array, "N 2"]:
    """Return the sum of S clips, each convolved with both ears of its direction, cut to N samples; for the device.

    As `render`, but in blocks (overlap-save): short transforms stay in a CPU's cache.
    """
    n, taps = mono.shape[-1], hrir.shape[-1]
    n_fft = _block_length(n, taps)
    step = n_fft - (taps - 1)
    n_blocks = math.ceil(n / step)
    in_blocks = lambda lead: jnp.pad(mono, ((0, 0), (lead, n_blocks * step - n)))[:, : n_blocks * step].reshape(
        len(mono), n_blocks, step
    )
    ends_before = in_blocks(taps - 1)[..., : taps - 1]  # of the block before
    blocks = jnp.fft.rfft(jnp.concatenate([ends_before, in_blocks(0)], axis=-1))
    spectrum = jnp.sum(blocks[:, None] * jnp.fft.rfft(hrir, n_fft)[:, :, None], axis=0)
    out = jnp.fft.irfft(spectrum, n_fft)[..., taps - 1 :]
    return out.reshape(2, n_blocks * step)[:, :n].T


def _block_length(n: int, taps: int) -> int:
    """Return the transform length with the least work: a power of two of at least two filters, or all in one."""
    whole = scipy.fft.next_fast_len(max(n, taps) + taps - 1, real=True)
    sizes = [2**i for i in range(math.ceil(math.log2(2 * taps)), 32) if 2**i < whole] + [whole]
    return min(sizes, key=lambda size: math.ceil(n / (size - taps + 1)) * size * math.log2(size))


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
