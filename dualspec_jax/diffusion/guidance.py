"""Guidance: classifier-free, with a scale and a condition for each branch, and by a network that knows the events."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dualspec_jax.diffusion.schedule import shift_prediction, split_prediction


def guide(
    denoiser: Callable,
    conditional: dict[str, Array],
    unconditional: dict[str, Array],
    scale: Float[Array, "C"],
    interval: Float[Array, "2"] | None = None,
    *,
    content: tuple[dict[str, Array], Bool[Array, "C"]] | None = None,
    rescale: float | Array = 0.0,
) -> Callable:
    """Return (x_t, t) -> null + scale * (conditional - null), all computed in one batch.

    Args:
      denoiser: (x_t, t, **condition) -> output.
      conditional, unconditional: arrays with a leading batch axis, the same keys and shapes; the second holds the
        negative prompt or the empty one.
      scale: per latent channel, so that Mel and STFT channels can have their own; 1 means no guidance.
      interval: lowest and highest training step that is guided, t being the same for the whole batch; elsewhere the
        conditional output stands alone and the other is not computed. None guides everywhere.
      content: (condition, mask) of the channels that follow this condition instead of `conditional`. The sampler gives
        the Mel channels the words alone and the STFT channels the words and the azimuth: with the azimuth token too,
        guided Mel latents were the right sound less often (15 of 40 clips against 25), without it the direction was
        11 deg off instead of 2 (docs/training.md).
      rescale: in [0, 1], how much of the way the guided output's standard deviation, per sample and group of channels,
        is brought back to that of the conditional one.

    Source: Ho and Salimans 2022 (arXiv:2207.12598); the interval: Kynkaanniemi et al. 2024 (arXiv:2404.07724);
    rescaling: Lin et al. 2024 (arXiv:2305.08891), section 3.4; scale and condition per branch are ours.
    """
    conditions = [conditional] if content is None else [conditional, content[0]]

    def outputs(x_t, t, conditions):
        n = len(conditions)
        together = jax.tree.map(lambda *c: jnp.concatenate(c), *conditions)
        return jnp.split(denoiser(jnp.concatenate([x_t] * n), jnp.concatenate([t] * n), **together), n)

    def merge(parts):
        return parts[0] if content is None else jnp.where(content[1], parts[1], parts[0])

    def guided(x_t, t):
        *parts, without = outputs(x_t, t, [*conditions, unconditional])
        with_condition = merge(parts)
        out = without + scale * (with_condition - without)
        group = jnp.zeros(out.shape[-1], bool) if content is None else content[1]
        ratio = _deviation(with_condition, group) / (_deviation(out, group) + 1e-6)
        return out * (1.0 - rescale + rescale * ratio)

    def plain(x_t, t):
        return merge(outputs(x_t, t, conditions))

    if interval is None:
        return guided
    return lambda x_t, t: jax.lax.cond((interval[0] <= t[0]) & (t[0] <= interval[1]), guided, plain, x_t, t)


def guide_to_event(
    denoiser: Callable,
    log_probability: Callable,
    scale: float | Float[Array, ""],
    alpha_bar: Float[Array, "S"] | np.ndarray,
    prediction: str,
    is_content: Bool[Array, "C"],
) -> Callable:
    """Return (x_t, t) -> the denoiser's output with the clean content moved to where the event is more probable.

    Args:
      denoiser: (x_t, t) -> output, other guidance included.
      log_probability: clean latents [B, t, f, C] -> log of the probability of the event that is asked for [B].
      scale: length of the move, in root mean squares of the clean content, while the event is improbable; the move is
        shorter in proportion to 1 - probability. 0 leaves the output as it is.
      prediction: what the denoiser returns, "v" or "eps".
      is_content: channels that may move.

    Source: a classifier's gradient as guidance, Dhariwal and Nichol 2021 (arXiv:2105.05233); at the predicted clean
    latents, where the classifier was trained, Bansal et al. 2023 (arXiv:2302.07121). The length of the move is ours.
    """

    def guided(x_t, t):
        output = denoiser(x_t, t)
        x0, _ = split_prediction(alpha_bar, x_t, output, t, prediction)
        found, pull_back = jax.vjp(log_probability, x0)
        gradient = jnp.where(is_content, pull_back(jnp.ones_like(found))[0], 0.0)
        size = lambda x: jnp.sqrt(jnp.mean(jnp.where(is_content, x, 0.0) ** 2, axis=(1, 2, 3), keepdims=True))
        length = scale * (1.0 - jnp.exp(found))[:, None, None, None] * size(x0)
        return shift_prediction(alpha_bar, output, length * gradient / (size(gradient) + 1e-12), t, prediction)

    return guided


def _deviation(x: Float[Array, "B t f C"], group: Bool[Array, "C"]) -> Float[Array, "B 1 1 C"]:
    """Return each sample's standard deviation of the channels in the group and of those outside, at their channels."""

    def deviation(mask):
        weight = mask / jnp.maximum(jnp.sum(mask), 1)
        mean = jnp.mean(jnp.sum(x * weight, axis=-1, keepdims=True), axis=(1, 2), keepdims=True)
        return jnp.sqrt(jnp.mean(jnp.sum((x - mean) ** 2 * weight, axis=-1, keepdims=True), axis=(1, 2), keepdims=True))

    return jnp.where(group, deviation(group), deviation(~group))
