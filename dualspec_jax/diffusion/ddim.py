"""DDIM as one scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dualspec_jax.diffusion.schedule import split_prediction


def ddim_timesteps(num_train_steps: int, steps: int) -> np.ndarray:
    """Return `steps` integers from num_train_steps - 1 down, evenly spaced ("trailing" spacing).

    Source: Lin et al. 2024 (arXiv:2305.08891), section 3.3: sampling starts at the noisiest step.
    """
    return np.round(np.arange(num_train_steps, 0, -num_train_steps / steps))[:steps].astype(np.int32) - 1


def ddim_sample(
    denoiser: Callable,
    noise: Float[Array, "B t f C"],
    keys: Array,
    alpha_bar: Float[Array, "S"] | np.ndarray,
    *,
    steps: int,
    eta: Float[Array, ""] | float = 0.0,
    prediction: str = "v",
) -> Float[Array, "B t f C"]:
    """Integrate from noise to a clean latent.

    Args:
      denoiser: (x_t, t [B]) -> output, guidance included.
      noise: standard normal start.
      keys: one key per sample, [B]; used only where eta > 0, so a sample does not depend on its batch.
      eta: 0 is deterministic, 1 has the variance of DDPM.
      prediction: what the denoiser returns, "v" or "eps".

    Source: Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """
    t_all = ddim_timesteps(len(alpha_bar), steps)
    a_all = np.asarray(alpha_bar)[t_all]
    a_next = np.append(a_all[1:], np.float32(1.0))

    def step(x_t, inputs):
        t, a, a_prev, index = inputs
        batch_t = jnp.full((x_t.shape[0],), t)
        x0, eps = split_prediction(alpha_bar, x_t, denoiser(x_t, batch_t), batch_t, prediction)
        sigma = eta * jnp.sqrt((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev))
        fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x_t.shape[1:]))(keys)
        direction = jnp.sqrt(jnp.maximum(1.0 - a_prev - sigma**2, 0.0)) * eps
        return jnp.sqrt(a_prev) * x0 + direction + sigma * fresh, None

    x, _ = jax.lax.scan(step, noise, (t_all, a_all, a_next, np.arange(steps)))
    return x
