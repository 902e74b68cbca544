"""Classifier-free guidance with a scale for each branch, over all noise levels or some."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
    denoiser: Callable,
    conditional: dict[str, Array],
    unconditional: dict[str, Array],
    scale: Float[Array, "C"],
    interval: Float[Array, "2"] | None = None,
) -> Callable:
    """Return (x_t, t) -> null + scale * (conditional - null), both computed in one batch.

    Args:
      denoiser: (x_t, t, **condition) -> output.
      conditional, unconditional: arrays with a leading batch axis, the same keys and shapes; the second holds the
        negative prompt or the empty one.
      scale: per latent channel, so that Mel and STFT channels can have their own; 1 means no guidance.
      interval: lowest and highest training step that is guided, t being the same for the whole batch; elsewhere the
        conditional output stands alone and the other is not computed. None guides everywhere.

    Source: Ho and Salimans 2022 (arXiv:2207.12598); the interval: Kynkaanniemi et al. 2024 (arXiv:2404.07724); the
    scale per branch is ours (see DESIGN.md section 3).
    """
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), conditional, unconditional)

    def guided(x_t, t):
        out = denoiser(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), **both)
        with_condition, without = jnp.split(out, 2)
        return without + scale * (with_condition - without)

    def plain(x_t, t):
        return denoiser(x_t, t, **conditional)

    if interval is None:
        return guided
    return lambda x_t, t: jax.lax.cond((interval[0] <= t[0]) & (t[0] <= interval[1]), guided, plain, x_t, t)
