"""Interaural features of the STFT branch, and the spatial filter that turns them back into two ears."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float


def _average_frames(x: Array, n: int) -> Array:
    """Sum each frame with its neighbours over n frames, t - n // 2 up to t + (n - 1) // 2; zeros outside."""
    left = n // 2
    padded = jnp.pad(x, ((0, 0), (left, n - 1 - left), (0, 0)))
    return sum(padded[:, i : i + x.shape[1]] for i in range(n)) / n


def spatial_features(
    spec: Complex[Array, "B T F 2"],
    *,
    floor: float = 1e-3,
    average_frames: int = 4,
    floor_response: Complex[Array, "B F 2"] | None = None,
) -> Float[Array, "B T F 4"]:
    """Return log|L|, log|R| (nepers) and the real and imaginary part of the interaural coherence.

    gamma = <S_L S_R*> / sqrt(<|S_L|^2> <|S_R|^2>), <> over `average_frames` frames; angle(gamma) is the interaural
    phase difference (left leads: positive below the first wrap), |gamma| in [0, 1] is 1 for a point source.

    Args:
      floor: lowest magnitude. It also keeps gamma at 0, not 0/0, where both ears are silent.
      floor_response: response of both ears to the source's direction. If given, the floor is that of a faint steady
        source at the same place, in expectation: silent bins then carry the direction as well, so that levels and
        phase exist wherever the Mel branch may put energy. Only the ratio of the ears matters.

    Source: DESIGN.md section 3; the floor response is ours (the paper does not say how silence is treated).
    """
    left, right = spec[..., 0], spec[..., 1]
    if floor_response is None:
        floor_l = floor_r = jnp.full(spec.shape[:1] + (1, 1), floor**2)
        floor_cross = jnp.zeros(spec.shape[:1] + (1, 1), spec.dtype)
    else:
        floor_l, floor_r, real, imag = jnp.moveaxis(floor_powers(floor_response, floor)[:, :, None], 1, 0)
        floor_cross = jax.lax.complex(real, imag)
    power_l, power_r = jnp.real(left * jnp.conj(left)), jnp.real(right * jnp.conj(right))
    mean_l = _average_frames(power_l, average_frames) + floor_l
    mean_r = _average_frames(power_r, average_frames) + floor_r
    gamma = (_average_frames(left * jnp.conj(right), average_frames) + floor_cross) / jnp.sqrt(mean_l * mean_r + 1e-20)
    tiny = 1e-4 * floor**2
    level_l = 0.5 * jnp.log(power_l + floor_l + tiny)
    level_r = 0.5 * jnp.log(power_r + floor_r + tiny)
    return jnp.stack([level_l, level_r, jnp.real(gamma), jnp.imag(gamma)], axis=-1)


def floor_powers(floor_response: Complex[Array, "B F 2"], floor: float = 1e-3) -> Float[Array, "B 4 F"]:
    """Return |L|^2, |R|^2 and the real and imaginary part of L R* of the faint source that `spatial_features` adds.

    Args:
      floor_response: response of both ears to the source's direction; only the ratio of the ears matters.
      floor: root mean square of the two ears' magnitudes.
    """
    h_l, h_r = floor_response[..., 0], floor_response[..., 1]
    power_l, power_r, cross = jnp.abs(h_l) ** 2, jnp.abs(h_r) ** 2, h_l * jnp.conj(h_r)
    mean_power = 0.5 * (power_l + power_r) + 1e-12
    powers = jnp.stack([power_l, power_r, jnp.real(cross), jnp.imag(cross)], axis=1)
    return floor**2 * powers / mean_power[:, None]


DRY, DIFFUSE = 0.9, 0.8  # mean |gamma| of a clip from which on its ears are not, or fully, decorrelated
OWN = 0.8  # mean |gamma| of real clips in rooms: phases vary that much among the frames that gamma is a mean of


def spatial_filter(
    content: Complex[Array, "B T F"],
    features: Float[Array, "B T F 4"],
    noise: Float[Array, "B T F"] | None = None,
) -> Complex[Array, "B T F 2"]:
    """Rebuild two ears from mono content and the generated levels and phases.

    Per bin the content's energy is split by the level difference (g_L^2 + g_R^2 = 1) and the ears get phases
    +phi / 2 and -phi / 2, phi = angle(gamma). Half an angle has two values, pi apart, so phi is first unwrapped along
    frequency around its mean over time: without that the content changes sign between neighbouring bins wherever phi
    wraps, which smears transients.

    Args:
      noise: of `phase_noise`. Where the coherence is small, as in rooms, phi is then drawn around angle(gamma), with
        |gamma| / OWN, at most 1, as its mean resultant length: gamma is a mean over what is not known, and without this
        the ears of echoes are as alike as those of the direct sound. Clips whose mean |gamma| is above DRY stay as they
        are. None leaves all clips so.

    Source: DESIGN.md section 3.
    """
    level_difference = features[..., 0] - features[..., 1]
    gain_l = jnp.sqrt(jax.nn.sigmoid(2.0 * level_difference))
    gain_r = jnp.sqrt(jax.nn.sigmoid(-2.0 * level_difference))
    gamma = jax.lax.complex(features[..., 2], features[..., 3])
    weight = jnp.abs(content) ** 2
    weight = weight + 1e-3 * jnp.mean(weight, axis=1, keepdims=True) + 1e-12
    mean_gamma = jnp.sum(gamma * weight, axis=1, keepdims=True)
    base = jnp.unwrap(jnp.angle(mean_gamma + 1e-20), axis=2)
    phase = base + jnp.angle(gamma * jnp.exp(-1j * base) + 1e-20)
    if noise is not None:
        modulus, amplitude = jnp.clip(jnp.abs(gamma), 0.05, 1.0), jnp.abs(content) + 1e-9
        resultant = jnp.minimum(modulus / OWN, 1.0)
        mean = jnp.sum(modulus * amplitude, axis=(1, 2), keepdims=True) / jnp.sum(amplitude, axis=(1, 2), keepdims=True)
        share = jnp.clip((DRY - mean) / (DRY - DIFFUSE), 0.0, 1.0)
        phase = phase + share * jnp.sqrt(-2.0 * jnp.log(resultant)) * noise  # a wrapped normal variable
    return jnp.stack([content * gain_l * jnp.exp(0.5j * phase), content * gain_r * jnp.exp(-0.5j * phase)], axis=-1)


def phase_noise(key: Array, frames: int, bins: int, overlap: int = 6) -> Float[Array, "T F"]:
    """Return normal noise of unit variance that changes as fast as a spectrogram can.

    Args:
      overlap: frames that share samples, window over hop; faster phases than that would cancel in the inverse STFT.
    """
    noise = jax.random.normal(key, (frames + 2 * overlap, bins + 2))
    kernel = np.hanning(2 * overlap + 3)[1:-1, None] * np.hanning(5)[1:-1]
    kernel = (kernel / np.sqrt(np.sum(kernel**2))).astype(np.float32)
    return jax.scipy.signal.convolve(noise, kernel, mode="valid")
