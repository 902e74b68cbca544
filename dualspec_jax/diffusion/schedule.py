"""Noise schedules and the identities between noise, velocity and clean latents."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def make_alpha_bar(schedule: str, num_steps: int) -> Float[np.ndarray, "S"]:
    """Return the cumulative signal power of each step, float32, decreasing.

    Args:
      schedule: "cosine" (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, beta at most 0.999) or "scaled_linear"
        (Rombach et al. 2022: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012)).

    Raises:
      ValueError: for another schedule.
    """
    if schedule == "cosine":
        f = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1.0 - f[1:] / f[:-1], 0.999)
    elif schedule == "scaled_linear":
        betas = np.linspace(0.00085**0.5, 0.012**0.5, num_steps) ** 2
    else:
        raise ValueError(f"schedule = {schedule!r}: must be cosine or scaled_linear")
    return np.cumprod(1.0 - betas).astype(np.float32)


def _signal_noise(alpha_bar, t):
    a = jnp.asarray(alpha_bar)[t][:, None, None, None]
    return jnp.sqrt(a), jnp.sqrt(1.0 - a)


def add_noise(
    alpha_bar: Float[Array, "S"] | np.ndarray,
    x0: Float[Array, "B t f C"],
    eps: Float[Array, "B t f C"],
    t: Int[Array, "B"],
) -> Float[Array, "B t f C"]:
    """Draw x_t from the forward process q(x_t | x_0).

    Args:
      alpha_bar: cumulative signal power per step, dimensionless, decreasing.
      x0, eps: clean latents scaled to unit variance; standard normal noise.
      t: steps in [0, S); out-of-range values are clamped, as JAX indexing does.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 4.
    """
    signal, noise = _signal_noise(alpha_bar, t)
    return signal * x0 + noise * eps


def velocity(alpha_bar, x0, eps, t) -> Float[Array, "B t f C"]:
    """Return v = sqrt(a) eps - sqrt(1 - a) x0. Source: Salimans and Ho 2022 (arXiv:2202.00512), section 4."""
    signal, noise = _signal_noise(alpha_bar, t)
    return signal * eps - noise * x0


def split_prediction(alpha_bar, x_t, output, t, prediction: str) -> tuple[Array, Array]:
    """Return (x0, eps) from the denoiser's output, "v" or "eps"."""
    signal, noise = _signal_noise(alpha_bar, t)
    if prediction == "v":
        return signal * x_t - noise * output, signal * output + noise * x_t
    return (x_t - noise * output) / signal, output


def shift_prediction(alpha_bar, output, shift, t, prediction: str) -> Float[Array, "B t f C"]:
    """Return the output, "v" or "eps", whose x0 by `split_prediction` lies `shift` away from that of `output`."""
    signal, noise = _signal_noise(alpha_bar, t)
    return output - (1.0 if prediction == "v" else signal) * shift / noise


def min_snr_weight(alpha_bar, t, gamma: float, prediction: str) -> Float[Array, "B"]:
    """Return the loss weight min(SNR, gamma) in terms of x0, converted for the prediction.

    Source: Hang et al. 2023 (arXiv:2303.09556), eq. 5.
    """
    a = jnp.asarray(alpha_bar)[t]
    snr = a / (1.0 - a)
    return jnp.minimum(snr, gamma) / (snr + 1.0 if prediction == "v" else snr)
