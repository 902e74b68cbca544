"""Phase from magnitudes: Griffin-Lim with momentum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from dualspec_jax.ops.stft import istft, stft


def griffin_lim(
    magnitude: Float[Array, "B T F"],
    keys: Array,
    *,
    iters: int = 32,
    momentum: float = 0.99,
    n_samples: int = 81920,
    n_fft: int = 1024,
    hop_length: int = 160,
) -> Complex[Array, "B T F"]:
    """Return a consistent complex spectrogram whose magnitude is near the given one.

    Args:
      keys: one PRNG key per sample, for the random initial phase.
      iters: projections; each costs one inverse and one forward STFT.
      momentum: 0 gives the classic algorithm (Griffin and Lim 1984); 0.99 converges faster and closer.

    Source: Perraudin et al. 2013, "A fast Griffin-Lim algorithm".
    """
    n_frames, n_bins = magnitude.shape[1:]

    def project(spec):
        wave = istft(spec[..., None], n_samples=n_samples, n_fft=n_fft, hop_length=hop_length)
        return stft(wave, n_fft=n_fft, hop_length=hop_length, n_frames=n_frames, n_bins=n_bins)[..., 0]

    def unit(spec):
        return spec / (jnp.abs(spec) + 1e-12)

    def body(_, carry):
        accelerated, previous = carry
        projected = project(magnitude * unit(accelerated))
        return projected + momentum * (projected - previous), projected

    phase = jax.vmap(lambda key: jax.random.uniform(key, magnitude.shape[1:], maxval=2.0 * jnp.pi))(keys)
    start = magnitude * jnp.exp(1j * phase)
    accelerated, _ = jax.lax.fori_loop(0, iters, body, (start, jnp.zeros_like(start)))
    return magnitude * unit(accelerated)
