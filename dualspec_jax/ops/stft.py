"""Short-time Fourier transform and its inverse, batched, jittable and differentiable."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float


def hann_window(n: int) -> np.ndarray:
    """Return the periodic Hann window of n samples, float32."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)).astype(np.float32)


def _split_frames(x: Float[Array, "B N C"], n_fft: int, hop_length: int, n_frames: int) -> Float[Array, "B T n_fft C"]:
    """Cut overlapping frames with slices and reshapes only (a gather is slow to differentiate)."""
    blocks_per_frame = -(-n_fft // hop_length)
    n_blocks = n_frames + blocks_per_frame - 1
    x = jnp.pad(x, ((0, 0), (0, max(0, n_blocks * hop_length - x.shape[1])), (0, 0)))
    blocks = x[:, : n_blocks * hop_length].reshape(x.shape[0], n_blocks, hop_length, x.shape[2])
    return jnp.concatenate([blocks[:, i : i + n_frames] for i in range(blocks_per_frame)], axis=2)[:, :, :n_fft]


def stft(
    waveform: Float[Array, "B N C"],
    *,
    n_fft: int = 1024,
    hop_length: int = 160,
    n_frames: int = 512,
    n_bins: int = 512,
) -> Complex[Array, "B T F C"]:
    """Transform with a centred periodic Hann window of n_fft samples and zero padding at the ends.

    Frame t is centred on sample t * hop_length. The first n_frames frames and n_bins bins are kept (512 bins:
    DC is kept, Nyquist dropped).

    Source: as `librosa.stft(center=True, pad_mode="constant")`; sizes from DESIGN.md section 2.
    """
    half = n_fft // 2
    padded = jnp.pad(waveform, ((0, 0), (half, half), (0, 0)))
    frames = _split_frames(padded, n_fft, hop_length, n_frames)
    spec = jnp.fft.rfft(frames * hann_window(n_fft)[None, None, :, None], axis=2)
    return spec[:, :, :n_bins]


def istft(
    spec: Complex[Array, "B T F C"], *, n_samples: int = 81920, n_fft: int = 1024, hop_length: int = 160
) -> Float[Array, "B n_samples C"]:
    """Invert `stft` by weighted overlap-add, the least-squares inverse.

    Bins above F (Nyquist) count as zero. Samples that no frame covers come out as zero.

    Source: Griffin and Lim 1984, eq. 6.
    """
    n_batch, n_frames, n_bins, n_channels = spec.shape
    window = hann_window(n_fft)
    spec = jnp.pad(spec, ((0, 0), (0, 0), (0, n_fft // 2 + 1 - n_bins), (0, 0)))
    frames = jnp.fft.irfft(spec, n=n_fft, axis=2) * window[None, None, :, None]
    k = -(-n_fft // hop_length)
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, k * hop_length - n_fft), (0, 0)))
    frames = frames.reshape(n_batch, n_frames, k, hop_length, n_channels)
    total = n_frames + k - 1
    out = sum(jnp.pad(frames[:, :, i], ((0, 0), (i, k - 1 - i), (0, 0), (0, 0))) for i in range(k))
    out = out.reshape(n_batch, total * hop_length, n_channels)

    power = np.zeros(total * hop_length, np.float32)
    for t in range(n_frames):
        power[t * hop_length : t * hop_length + n_fft] += window**2
    out = out * np.where(power > 1e-3, 1.0 / np.maximum(power, 1e-3), 0.0)[None, :, None].astype(np.float32)
    out = out[:, n_fft // 2 :]
    out = jnp.pad(out, ((0, 0), (0, max(0, n_samples - out.shape[1])), (0, 0)))
    return out[:, :n_samples]
