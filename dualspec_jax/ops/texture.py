"""Statistics that describe the texture of a sound whatever its level: colour, its spread and its change over time."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RANGE_NEPERS = 9.0  # cells further below the loudest one count as that far below it: 78 dB
N_CEPSTRA = 24
N_GROUPS = 16  # of neighbouring Mel bands, for the changes over time
LAGS_S = (0.02, 0.06, 0.2)  # of changes of the cepstra
GROUP_LAGS_S = (0.02, 0.04, 0.1, 0.3)  # of rises and falls in a group of bands
MODULATION_HZ = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0)  # edges of the modulation bands


def pool_frames(mel: Float[Array, "B T M"], n: int) -> Float[Array, "B S M"]:
    """Average every n frames of a log-mel as energies; frames left over at the end are dropped."""
    count = mel.shape[1] // n
    blocks = mel[:, : count * n].reshape(mel.shape[0], count, n, mel.shape[2])
    return 0.5 * (jax.nn.logsumexp(2.0 * blocks, axis=2) - jnp.log(n))


def texture_statistics(mel: Float[Array, "B T M"], frame_rate: float) -> Float[Array, "B D"]:
    """Return time-averaged statistics of a log-mel spectrogram.

    Cepstra (cosine transform over bands): mean and log spread, log mean change over LAGS_S. Groups of bands: power of
    their log envelope in octave bands of modulation; mean, largest and smallest change over GROUP_LAGS_S. The level of
    the clip does not count, nor when something happens in it.

    Args:
      mel: nepers; M divisible by N_GROUPS.
      frame_rate: frames per second.

    Source: the statistics follow McDermott and Simoncelli 2011 ("Sound texture perception via statistics of the
    auditory periphery"): moments and modulation power of subband envelopes; the choice among them is ours.
    """
    frames, bands = mel.shape[1:]
    x = jnp.maximum(mel, jnp.max(mel, axis=(1, 2), keepdims=True) - RANGE_NEPERS)
    x = x - 0.5 * (jax.nn.logsumexp(2.0 * x, axis=(1, 2), keepdims=True) - jnp.log(frames * bands))

    place = np.pi * (np.arange(bands) + 0.5) / bands
    basis = np.cos(place[:, None] * np.arange(min(N_CEPSTRA, bands))) * np.sqrt(2.0 / bands)
    cepstra = x @ basis.astype(np.float32)
    log = lambda value: jnp.log(value + 1e-2)
    parts = [jnp.mean(cepstra, axis=1), log(jnp.std(cepstra, axis=1))]
    for lag in _lags(LAGS_S, frame_rate, frames):
        parts.append(log(jnp.mean(jnp.abs(cepstra[:, lag:] - cepstra[:, :-lag]), axis=1)))

    groups = jnp.mean(x.reshape(*x.shape[:2], N_GROUPS, bands // N_GROUPS), axis=-1)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    window = np.hanning(frames + 2)[1:-1].astype(np.float32)
    power = jnp.abs(jnp.fft.rfft(centred * window[:, None], axis=1)) ** 2 / np.sum(window**2)
    edges = np.round(np.array(MODULATION_HZ) * frames / frame_rate).astype(int)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        low = min(low, power.shape[1] - 1)
        parts.append(log(jnp.mean(power[:, low : max(high, low + 1)], axis=1)))
    for lag in _lags(GROUP_LAGS_S, frame_rate, frames):
        change = groups[:, lag:] - groups[:, :-lag]
        parts += [log(jnp.mean(jnp.abs(change), axis=1)), jnp.max(change, axis=1), jnp.min(change, axis=1)]
    return jnp.concatenate(parts, axis=-1)


def _lags(seconds, frame_rate: float, frames: int) -> list[int]:
    """Return whole frames, at least 1 and less than the clip."""
    return [min(max(1, round(s * frame_rate)), frames - 1) for s in seconds]
