"""Two-ear rendering and both spectrograms by the kernels of `audio.cc`, on a CPU.

One complex transform serves both ears, sums and logarithms run on eight bins at once, and what a frame needs stays in
the first cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dualspec_jax.native import library
from dualspec_jax.ops.stft import hann_window

_POINTS = 1024  # of the only transform there is
_LANES = 8


def can_analyse(n_fft: int, n_bins: int, n_mels: int) -> bool:
    """Return whether `analyse` is there, for these sizes."""
    fits = n_fft == _POINTS and n_bins <= _POINTS // 2 and n_bins % _LANES == 0 and n_mels % _LANES == 0
    return fits and library.available()


def can_render(taps: int, n_fft: int, n_bins: int, n_mels: int) -> bool:
    """Return whether `render` is there, for responses of this many taps: with more, longer blocks are faster."""
    return taps <= _POINTS // 2 and can_analyse(n_fft, n_bins, n_mels)


def analyse(
    waveforms: Float[Array, "B N 2"], floors: Float[Array, "B 4 F"], filters: Float[np.ndarray, "F M"], **sizes
) -> tuple[Float[Array, "B T M 2"], Float[Array, "B T F 4"]]:
    """Return what `ops.analysis.clip_features` returns, for each clip of a batch; no gradient.

    Args:
      sizes: hop_length, n_frames, mel_floor, stft_floor and average_frames, as there.
    """
    shapes, constants, attributes = _describe(len(waveforms), filters, **sizes)
    return tuple(jax.ffi.ffi_call("dualspec_analyse", shapes)(waveforms, floors, *constants, **attributes))


def render(
    mono: Float[Array, "B S N"],
    hrir: Float[Array, "B S 2 K"],
    peak: float,
    floors: Float[Array, "B 4 F"],
    filters: Float[np.ndarray, "F M"],
    **sizes,
) -> tuple[Float[Array, "B N 2"], Float[Array, "B T M 2"], Float[Array, "B T F 4"]]:
    """Return `spatial.scene.render_sources` of each clip, at most as loud as the peak, and `analyse` of it."""
    shapes, constants, attributes = _describe(len(mono), filters, **sizes)
    shapes = [jax.ShapeDtypeStruct((len(mono), mono.shape[2], 2), jnp.float32), *shapes]
    call = jax.ffi.ffi_call("dualspec_render", shapes)
    return tuple(call(mono, hrir, floors, *constants, peak=np.float32(peak), **attributes))


def _describe(batch, filters, *, hop_length, n_frames, mel_floor, stft_floor, average_frames):
    """Return the shapes of both spectrograms, the constant operands and the attributes of a call."""
    n_bins, n_mels = filters.shape
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((batch, n_frames, n_mels, 2), (batch, n_frames, n_bins, 4))
    ]
    attributes = {"mel_floor": np.float32(mel_floor), "stft_floor": np.float32(stft_floor)}
    attributes |= {"hop": np.int64(hop_length), "average": np.int64(average_frames)}
    # Half a window: the kernel takes twice the spectra of both ears out of one transform.
    return shapes, (0.5 * hann_window(_POINTS), *_pack(filters.tobytes(), n_bins)), attributes


@functools.cache
def _pack(filters: bytes, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each band's first bin, its groups of eight bins, and the weights of all groups one behind the other.

    A last group may reach beyond the last bin, where the kernel has zeros.
    """
    weights = np.frombuffer(filters, np.float32).reshape(n_bins, -1).T
    padded = np.pad(weights, ((0, 0), (0, _LANES)))
    used = [np.flatnonzero(band) for band in weights]
    first = np.array([bins[0] if len(bins) else 0 for bins in used], np.int32)
    groups = np.array([-(-(bins[-1] + 1 - bins[0]) // _LANES) if len(bins) else 0 for bins in used], np.int32)
    rows = [padded[m, first[m] : first[m] + _LANES * groups[m]] for m in range(len(weights))]
    return first, groups, np.concatenate(rows)
