"""Both spectrograms of a two-ear clip, made fast on a CPU: for building data and rendering batches.

The readable definition is `ops.stft.stft`, `ops.mel.log_mel` and `ops.binaural.spatial_features`; the tests hold this
file to it. On a CPU with a compiler kernels in C++ do the work (`native.audio`), 3.6 times as fast as `clip_features`.
What makes that fast on a CPU without one: ear and frequency are the outer and inner axes, real and imaginary parts are
separate planes, so every pass runs in whole vector registers; frames are cut and windowed in one pass; the Mel filters
are two narrow products; and clips go one by one (`map_clips`), so that intermediates stay in the cache and below the
size from which the allocator hands memory back to the system after every call.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dualspec_jax.native import audio as native
from dualspec_jax.ops.stft import hann_window


def map_clips(function: Callable, *batch: Array):
    """Apply a function of one clip to each clip of a batch: on a CPU in turn, elsewhere together.

    On a CPU a clip's result is the same in whatever batch it comes, and takes about one core: use them by processes.
    """
    one_by_one = lambda *batch: jax.lax.map(lambda clip: function(*clip), batch)
    return jax.lax.platform_dependent(*batch, cpu=one_by_one, default=jax.vmap(function))


def analyse_clips(
    waveforms: Float[Array, "B N 2"],
    floors: Float[Array, "B 4 F"],
    filters: Float[np.ndarray, "F M"],
    *,
    n_fft: int,
    **sizes,
) -> tuple[Float[Array, "B T M 2"], Float[Array, "B T F 4"]]:
    """Return `clip_features` of each clip of a batch; arguments as there. Only `clip_features` has gradients."""
    if native.can_analyse(n_fft, *filters.shape):
        return native.analyse(waveforms, floors, filters, **sizes)
    return map_clips(lambda x, f: clip_features(x, f, filters, n_fft=n_fft, **sizes), waveforms, floors)


def clip_features(
    waveform: Float[Array, "N 2"],
    floors: Float[Array, "4 F"],
    filters: Float[np.ndarray, "F M"],
    *,
    n_fft: int = 1024,
    hop_length: int = 160,
    n_frames: int = 512,
    mel_floor: float = 1e-5,
    stft_floor: float = 1e-3,
    average_frames: int = 4,
) -> tuple[Float[Array, "T M 2"], Float[Array, "T F 4"]]:
    """Return the log-mel of both ears and the STFT features of one clip, as `log_mel` and `spatial_features` of `stft`.

    Args:
      floors: `ops.binaural.floor_powers` of the clip.
      filters: Mel filters of the first F bins, a constant: where they are zero decides what is computed.
      mel_floor, stft_floor: lowest magnitudes.
      average_frames: frames of the interaural coherence.
    """
    more = {"n_fft": n_fft, "hop_length": hop_length, "mel_floor": mel_floor, "stft_floor": stft_floor}
    more |= {"average_frames": average_frames, "filters": filters}

    def silence(waveform, floors):
        one_frame = _analyse(jnp.zeros((n_fft, 2), waveform.dtype), floors, n_frames=1, **more)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n_frames, *x.shape[1:])), one_frame)

    # A last batch is filled up with silent clips: they cost nothing. More than that, XLA does not fuse across a branch:
    # on a CPU the last pass, merged with `map_clips`' loop, takes five times as long.
    analyse = functools.partial(_analyse, n_frames=n_frames, **more)
    return jax.lax.cond(jnp.any(waveform != 0), analyse, silence, waveform, floors)


def _analyse(waveform, floors, *, filters, n_fft, hop_length, n_frames, mel_floor, stft_floor, average_frames):
    n_bins = len(filters)
    before = average_frames // 2
    kept = slice(before, before + n_frames)
    frames = _windowed_frames(waveform.T, n_fft, hop_length, n_frames, before, average_frames - 1 - before)
    spec = jnp.fft.rfft(frames)[..., :n_bins]
    re, im = jnp.real(spec), jnp.imag(spec)
    magnitude = jnp.sqrt(re**2 + im**2 + 1e-16)  # finite gradient at silence
    mel = jnp.log(jnp.maximum(_filter_bands(magnitude[:, kept], filters), mel_floor))

    # Squares of the root: the root is stored, as the Mel filters need it, and XLA would compute the power many times.
    power_l, power_r = magnitude[0] ** 2, magnitude[1] ** 2
    average = lambda x: sum(x[i : i + n_frames] for i in range(average_frames)) / average_frames
    norm = jax.lax.rsqrt((average(power_l) + floors[0]) * (average(power_r) + floors[1]) + 1e-20)
    tiny = 1e-4 * stft_floor**2
    features = _interleave(
        0.5 * jnp.log(power_l[kept] + (floors[0] + tiny)),
        0.5 * jnp.log(power_r[kept] + (floors[1] + tiny)),
        (average(re[0] * re[1] + im[0] * im[1]) + floors[2]) * norm,
        (average(im[0] * re[1] - re[0] * im[1]) + floors[3]) * norm,
    )
    return jnp.moveaxis(mel, 0, -1), features


def _windowed_frames(
    x: Float[Array, "C N"], n_fft: int, hop_length: int, n_frames: int, before: int, after: int
) -> Float[Array, "C R n_fft"]:
    """Cut centred frames and window them, with `before` frames of zeros in front and at least `after` behind.

    Every k-th frame, where k hops are no less than a frame, lies beside the last: k reshapes give all frames.
    """
    k = -(-n_fft // hop_length)
    n = -(-(before + n_frames + after) // k)
    start, stop = n_fft // 2 + before * hop_length, (n + 1) * k * hop_length
    x = jnp.pad(x, ((0, 0), (start, max(0, stop - start - x.shape[1]))))
    inside = np.zeros((n * k, 1), np.float32)
    inside[before : before + n_frames] = 1.0
    step = k * hop_length
    every_kth = [
        x[:, i * hop_length : i * hop_length + n * step].reshape(-1, n, step)[..., :n_fft]
        * (inside[i::k] * hann_window(n_fft))
        for i in range(k)
    ]
    return jnp.stack(every_kth, axis=2).reshape(-1, n * k, n_fft)


def _filter_bands(magnitude: Float[Array, "C T F"], filters: Float[np.ndarray, "F M"]) -> Float[Array, "C T M"]:
    """Apply Mel filters as two products, low bins and high bins, each with the bands that reach into them."""
    n_bins, n_mels = filters.shape

    def bands(part: slice) -> slice:
        used = np.flatnonzero(np.any(filters[part], axis=0))
        return slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)

    def cost(edge: int) -> int:
        return sum((p.stop - p.start) * (bands(p).stop - bands(p).start) for p in (slice(0, edge), slice(edge, n_bins)))

    edge = min(range(0, n_bins, 16), key=cost)
    total = 0.0
    for part in (slice(0, edge), slice(edge, n_bins)):
        m = bands(part)
        if m.stop > m.start:
            product = magnitude[..., part] @ filters[part, m]
            total = total + jnp.pad(product, ((0, 0), (0, 0), (m.start, n_mels - m.stop)))
    return total


def _interleave(*planes: Float[Array, "T F"]) -> Float[Array, "T F 4"]:
    """Stack four planes along a last axis: by selection, which XLA on a CPU does not compute the planes anew for."""
    channel = jnp.arange(4)
    a, b, c, d = (plane[..., None] for plane in planes)
    return jnp.where(channel < 2, jnp.where(channel == 0, a, b), jnp.where(channel == 2, c, d))
