"""Sums over time that tell two ears apart, and the cues per band that a localiser reads from them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

LOW_HZ, HIGH_HZ = 100.0, 7500.0
BINS_PER_BAND = 5  # 78 Hz at n_fft 1024: an interaural phase turns by 0.3 rad within a band at most
EXPONENT = 0.3  # of the energy, for a bin's weight: a loud tone does not drown the other bands
MAX_ILD_NEPERS = 4.0
RANGE_NEPERS = 6.0  # weights further below the largest count as that far below it
ONSET_FRAMES = (3, 10)  # frames before the present one in which sound may have left an echo; nearer ones overlap it


def interaural_statistics(spec: Complex[Array, "B T F 2"]) -> Float[Array, "B F 4"]:
    """Return |L|^2, |R|^2 and the real and imaginary part of L R*, summed over time.

    Cells louder than what was there shortly before count more: they hold the direct sound, before its echoes. In an
    anechoic clip that changes nothing, as every cell has the same direction.

    Source: the precedence weighting is in the spirit of Faller and Merimaa 2004; its form is ours.
    """
    left, right = spec[..., 0], spec[..., 1]
    power_l, power_r = jnp.abs(left) ** 2, jnp.abs(right) ** 2
    cross = left * jnp.conj(right)
    total = power_l + power_r
    start, stop = ONSET_FRAMES
    padded = jnp.pad(total, ((0, 0), (stop, 0), (0, 0)))
    before = sum(padded[:, stop - lag : stop - lag + total.shape[1]] for lag in range(start, stop + 1))
    before = before / (stop - start + 1)
    weight = jnp.maximum(1.0 - before / (total + 1e-12), 0.02)
    sums = [power_l, power_r, jnp.real(cross), jnp.imag(cross)]
    return jnp.stack([jnp.sum(weight * x, axis=1) for x in sums], axis=-1)


def interaural_cues(
    statistics: Float[Array, "B F 4"], sample_rate: int = 16000, n_fft: int = 1024
) -> Float[Array, "B K 4"]:
    """Return, for each band: real and imaginary coherence, level difference over 2 nepers, and weight in [-1, 0].

    Neither the level of the clip nor, but for the weights, the colour of its sound counts.
    """
    freqs = np.arange(statistics.shape[1]) * sample_rate / n_fft
    first, last = np.searchsorted(freqs, [LOW_HZ, HIGH_HZ])
    count = (last - first) // BINS_PER_BAND
    x = statistics[:, first : first + count * BINS_PER_BAND]
    total = x[..., 0] + x[..., 1]
    total = total / (jnp.max(total, axis=1, keepdims=True) + 1e-20)
    x = x * (jnp.maximum(total, 1e-9) ** (EXPONENT - 1.0))[..., None]
    x = jnp.sum(x.reshape(x.shape[0], count, BINS_PER_BAND, 4), axis=2)
    power_l, power_r = x[..., 0] + 1e-20, x[..., 1] + 1e-20
    coherence = x[..., 2:] / (jnp.sqrt(power_l) * jnp.sqrt(power_r))[..., None]
    ild = jnp.clip(0.5 * jnp.log(power_l / power_r), -MAX_ILD_NEPERS, MAX_ILD_NEPERS)
    level = jnp.log(power_l + power_r)
    weight = jnp.maximum(level - jnp.max(level, axis=1, keepdims=True), -RANGE_NEPERS) / RANGE_NEPERS
    return jnp.concatenate([coherence, 0.5 * ild[..., None], weight[..., None]], axis=-1)
