"""Turn the training section of a config into an optax transformation and its learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dualspec_jax.models.cpu_layers import global_norm


def make_schedule(lr: float, warmup_steps: int, steps: int, final_lr_ratio: float) -> Callable[[Any], jax.Array]:
    """Return step -> learning rate: a linear warm-up, then a cosine down to lr * final_lr_ratio.

    Steps count from 0. The first update already moves, by lr / warmup_steps; the peak is reached at update
    `warmup_steps - 1`, and the cosine ends at `steps`, after which the rate stays.
    """

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum((step + 1.0) / max(warmup_steps, 1), 1.0)
        progress = jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return lr * warmup * (final_lr_ratio + (1.0 - final_lr_ratio) * cosine)

    return schedule


def decay_mask(params: Any) -> Any:
    """Return a tree of bools: true for kernels and embeddings (two axes or more), false for biases and scales."""

    def decays(path, x) -> bool:
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        return x.ndim >= 2 and name not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Return `optax.clip_by_global_norm`, with the norm that the train step reports, so that it is computed once."""

    def clip(updates, params):
        del params
        norm = global_norm(updates)
        return jax.tree.map(lambda x: jnp.where(norm < limit, x, x / norm.astype(x.dtype) * limit), updates)

    return optax.stateless(clip)


def make_optimizer(train_config: ConfigDict) -> tuple[optax.GradientTransformation, Callable[[Any], jax.Array]]:
    """Return (tx, schedule) of a task: clipping by global norm, then AdamW.

    Args:
      train_config: `config.train[task]`; reads lr, warmup_steps, steps, final_lr_ratio, b1, b2, weight_decay, grad_clip
        (None = no clipping).

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    c = train_config
    schedule = make_schedule(c.lr, c.warmup_steps, c.steps, c.final_lr_ratio)
    adamw = optax.adamw(schedule, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=decay_mask)
    clip = optax.identity() if c.grad_clip is None else clip_by_global_norm(c.grad_clip)
    return optax.chain(clip, adamw), schedule
