"""A waveform's spectrogram from magnitudes (Griffin-Lim with momentum) or from a Mel spectrogram and a first guess."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from dualspec_jax.ops.stft import istft, stft

MAX_GAIN = 20.0  # of one scaling of a bin in `match_mel`: a silent one does not explode


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
    project = _projection(magnitude.shape, n_samples, n_fft, hop_length)

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


def match_mel(
    spec: Complex[Array, "B T F"],
    mel: Float[Array, "B T M"],
    filters: Float[Array, "F M"] | np.ndarray,
    *,
    iters: int = 4,
    momentum: float = 0.5,
    n_samples: int = 81920,
    n_fft: int = 1024,
    hop_length: int = 160,
) -> Complex[Array, "B T F"]:
    """Return a spectrogram near the given one, of a waveform whose Mel spectrum is near exp(mel).

    As Griffin-Lim, but what is imposed between two projections is the Mel spectrum alone: each bin is scaled by the
    mean, over the bands that see it, of wanted over present magnitude. That leaves the magnitudes within a band, and so
    the waveform, more freedom: on recordings, 12 steps of Griffin-Lim and 4 of these end nearer to the Mel than 32 of
    Griffin-Lim (docs/training.md). Many of them from a random phase make the fine structure of tones noisy.

    Args:
      spec: first guess; with a random phase as good as none.
      mel: log-mel of the waveform, nepers.
      filters: of `mel_filterbank`. Bins that no band sees are left alone.
      iters: projections; each costs one inverse and one forward STFT. 0 only scales the bins.
    """
    project = _projection(spec.shape, n_samples, n_fft, hop_length)
    filters = jnp.asarray(filters)
    seen = jnp.sum(filters, axis=1)
    share = (filters / jnp.maximum(seen, 1e-9)[:, None]).T
    wanted = jnp.exp(mel)

    def impose(x):
        present = jnp.sqrt(jnp.real(x) ** 2 + jnp.imag(x) ** 2 + 1e-16) @ filters
        return x * jnp.where(seen > 0, jnp.minimum(wanted / (present + 1e-8), MAX_GAIN) @ share, 1.0)

    def body(_, carry):
        accelerated, previous = carry
        projected = project(impose(accelerated))
        return projected + momentum * (projected - previous), projected

    accelerated, _ = jax.lax.fori_loop(0, iters, body, (spec, spec))
    return impose(accelerated)


def _projection(shape, n_samples: int, n_fft: int, hop_length: int):
    """Return the projection of spectrograms of that shape [B, T, F] onto those that belong to a waveform."""
    _, n_frames, n_bins = shape

    def project(spec):
        wave = istft(spec[..., None], n_samples=n_samples, n_fft=n_fft, hop_length=hop_length)
        return stft(wave, n_fft=n_fft, hop_length=hop_length, n_frames=n_frames, n_bins=n_bins)[..., 0]

    return project
