"""TrainState and the pure update shared by all tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dualspec_jax.models.cpu_layers import global_norm

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that a step reads and writes; only arrays, so that saving and sharding are tree maps.

    Attributes:
      step: int32 [], number of updates done.
      params: float32.
      ema_params: running average of params, float32, the same tree.
      opt_state: of the optax transformation.
    """

    step: PyTree
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree


def init_state(init: Callable[[jax.Array], PyTree], tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Return the state before the first update; the caller jits it with the shardings it wants."""
    params = init(key)
    # A copy: two leaves of the state that share a buffer could not both be donated.
    ema_params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema_params=ema_params, opt_state=tx.init(params))


def ema_decay_at(step: jax.Array, ema_decay: float) -> jax.Array:
    """Return the decay of the average at an update: min(ema_decay, (1 + step) / (10 + step)).

    The warm-up lets the average forget the initial weights; `step` counts from 0.
    Paper: not stated; this is the warm-up of TensorFlow's ExponentialMovingAverage.
    """
    return jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    loss_fn: Callable, tx: optax.GradientTransformation, ema_decay: float, accumulate: int = 1
) -> Callable:
    """Return the pure update (state, batch, key, *frozen) -> (state, metrics); the caller jits it.

    The same key may be passed at every step: the step folds its own number into it. To the metrics of `loss_fn`, the
    update adds `loss` and `grad_norm` (global norm before clipping). What is `frozen` goes to the loss as it is.

    Args:
      loss_fn: (params, batch, key, *frozen) -> (scalar, metrics), both means over the batch.
      ema_decay: of the average of the parameters, in [0, 1), see `ema_decay_at`.
      accumulate: parts of the batch whose gradients are taken one after the other, then averaged: part i holds the
        examples i, i + accumulate, ..., so that every device of a split batch keeps its own. Divides the batch. The
        update is that of the whole batch where the loss is a plain mean over examples; the amplitude-weighted means of
        `losses.stft_errors` become means of the parts' means.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(params, batch, key, *frozen):
        (loss, aux), grads = value_and_grad(params, batch, key, *frozen)
        return grads, aux | {"loss": loss}

    def accumulated(params, batch, key, *frozen):
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, numbered):
            number, part = numbered
            new = gradients(params, part, jax.random.fold_in(key, number), *frozen)
            return jax.tree.map(jnp.add, total, new), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, params, first, key, *frozen)
        )
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(
        state: TrainState, batch: PyTree, key: jax.Array, *frozen
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        grads, metrics = (gradients if accumulate == 1 else accumulated)(state.params, batch, key, *frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay)
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        metrics = metrics | {"grad_norm": global_norm(grads)}
        state = state.replace(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state)
        return state, metrics

    return train_step
