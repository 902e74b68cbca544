"""Mel spectrograms and their approximate inverse."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000.0, hz * 3.0 / 200.0, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) / (np.log(6.4) / 27.0))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)))


def mel_filterbank(
    sample_rate: int = 16000,
    n_fft: int = 1024,
    n_mels: int = 64,
    fmin: float = 0.0,
    fmax: float = 8000.0,
    n_bins: int = 512,
) -> np.ndarray:
    """Return triangular Mel filters, float32 [F, M], for the first n_bins bins.

    Slaney's scale and area normalisation, librosa's default (`librosa.filters.mel`, transposed).

    Source: Slaney 1998, Auditory Toolbox.
    """
    freqs = np.arange(n_bins) * sample_rate / n_fft
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), n_mels + 2))
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    rise = (freqs[:, None] - low) / (mid - low)
    fall = (high - freqs[:, None]) / (high - mid)
    return (np.maximum(0.0, np.minimum(rise, fall)) * 2.0 / (high - low)).astype(np.float32)


def mel_filters(audio) -> np.ndarray:
    """Return the filters of `config.audio`, float32 [F, M]."""
    return mel_filterbank(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax, audio.n_bins)


def log_mel(
    spec: Complex[Array, "B T F C"], filters: Float[Array, "F M"] | np.ndarray, floor: float = 1e-5
) -> Float[Array, "B T M C"]:
    """Return the natural log of the Mel-filtered magnitude, at least log(floor).

    Source: the convention of HiFi-GAN and AudioLDM.
    """
    magnitude = jnp.sqrt(jnp.real(spec) ** 2 + jnp.imag(spec) ** 2 + 1e-16)  # finite gradient at silence
    return jnp.log(jnp.maximum(jnp.einsum("btfc,fm->btmc", magnitude, filters), floor))


def sum_ears(mel: Float[Array, "B T M 2"]) -> Float[Array, "B T M"]:
    """Return the log-mel of the content: the two ears add as energies. Units: nepers in, nepers out."""
    return 0.5 * jax.nn.logsumexp(2.0 * mel, axis=-1)


def spread_mel(mel: Float[Array, "B T M"], filters: Float[Array, "F M"] | np.ndarray) -> Float[Array, "B T F"]:
    """Return smooth magnitudes about as large as those behind a log-mel: each bin has the mean of its bands."""
    filters = jnp.asarray(filters)
    return jnp.exp(mel) @ filters.T / (jnp.sum(filters, axis=1) * jnp.mean(jnp.sum(filters, axis=0)) + 1e-6)


def mel_to_magnitude(
    mel: Float[Array, "B T M"],
    filters: Float[Array, "F M"] | np.ndarray,
    *,
    iters: int = 30,
    initial: Float[Array, "B T F"] | None = None,
) -> Float[Array, "B T F"]:
    """Return non-negative magnitudes whose Mel spectrum is near exp(mel).

    Args:
      iters: multiplicative updates.
      initial: starting magnitudes, for instance those of the STFT branch; None starts from the filters' transpose.

    Source: non-negative least squares with the updates of Lee and Seung 2001.
    """
    filters = jnp.asarray(filters)
    numerator = jnp.exp(mel) @ filters.T
    if initial is None:
        initial = spread_mel(mel, filters)

    def update(_, s):
        return s * numerator / ((s @ filters) @ filters.T + 1e-9)

    return jax.lax.fori_loop(0, iters, update, initial + 1e-6)
