"""Where the STFT latents of a steady source lie for each azimuth, and how to bring generated ones there.

The mean over time of a clip's STFT latents is Gaussian about a point that depends on the azimuth alone. About it they
vary a lot with the level and the colour of the sound, and hardly at all in the directions that carry the interaural
cues: the variances differ by six orders. Given latents that are wrong by some noise, the most likely right ones keep
what varies and return what does not to its place (Wiener's filter). The denoiser makes the sound; this makes sure that
it comes from exactly where it was asked for.

The prior is of single sources that do not move, in the rooms and heads of the training set. Paper: not stated; ours,
docs/training.md has what it is worth.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

HARMONICS = 32  # of the azimuth: 4.4 wavelengths of 8 kHz lie around a head, phases turn by some 26 harmonics
MIN_SCENES = 20 * HARMONICS  # fewer do not tell the variances
SMOOTHNESS = 1e-4  # penalty of a squared harmonic, in scenes: a few azimuths (a grid) are joined by low harmonics


def _harmonics(xp, azimuth_deg, count: int):
    angle = xp.deg2rad(azimuth_deg)[:, None] * xp.arange(1, count + 1)
    return xp.concatenate([xp.ones_like(angle[:, :1]), xp.cos(angle), xp.sin(angle)], axis=1)


def fit_direction_prior(
    means: Float[np.ndarray, "n D"], azimuth_deg: Float[np.ndarray, "n"], harmonics: int = HARMONICS
) -> dict[str, np.ndarray]:
    """Return {coefficients [1 + 2 K, D], vectors [D, D], variances [D]}, float32.

    Args:
      means: mean over time of each scene's normalised STFT latents, frequency and channel as one axis.
      azimuth_deg: of each scene's only source.

    Raises:
      ValueError: fewer than MIN_SCENES scenes.
    """
    if len(means) < MIN_SCENES:
        raise ValueError(f"means: {len(means)} scenes; a direction prior needs at least {MIN_SCENES}")
    basis, means = _harmonics(np, np.asarray(azimuth_deg, np.float64), harmonics), np.asarray(means, np.float64)
    order = np.r_[0, np.arange(1, harmonics + 1), np.arange(1, harmonics + 1)]
    penalty = np.diag(SMOOTHNESS * order.astype(np.float64) ** 2)
    coefficients = np.linalg.solve(basis.T @ basis + penalty, basis.T @ means)
    rest = means - basis @ coefficients
    variances, vectors = np.linalg.eigh(rest.T @ rest / max(1, len(means) - len(coefficients)))
    found = {"coefficients": coefficients, "vectors": vectors, "variances": np.maximum(variances, 0.0)}
    return {name: value.astype(np.float32) for name, value in found.items()}


def steer(
    prior: dict[str, Array],
    z: Float[Array, "B t f C"],
    azimuth_deg: Float[Array, "B"],
    known: Bool[Array, "B"],
    noise: Float[Array, ""] | float,
) -> Float[Array, "B t f C"]:
    """Return normalised STFT latents whose mean over time is the most likely one for the azimuth.

    Args:
      known: where false, the latents stay as they are.
      noise: variance by which each component of the mean is taken to be wrong; 0 changes nothing, above 1 what varies
        with the sound is lost too.
    """
    harmonics = prior["coefficients"].shape[0] // 2
    offset = jnp.mean(z, axis=1).reshape(z.shape[0], -1)
    offset = offset - _harmonics(jnp, azimuth_deg, harmonics) @ prior["coefficients"]
    wrong = noise / (prior["variances"] + noise + 1e-12)
    change = ((offset @ prior["vectors"]) * wrong) @ prior["vectors"].T * known[:, None]
    return z - change.reshape(z.shape[0], 1, *z.shape[2:])
