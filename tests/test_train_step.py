import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dualspec_jax.train_step import ema_decay_at, init_state, make_train_step


def _init(key):
    return {"w": jax.random.normal(key, (3,))}


def _loss(params, batch, key):
    noise = jax.random.normal(key)
    loss = jnp.sum((params["w"] - batch) ** 2)
    return loss, {"noise": noise}


def _run(steps, ema_decay=0.5, lr=0.1, key=0):
    tx = optax.sgd(lr)
    state = init_state(_init, tx, jax.random.key(7))
    step = jax.jit(make_train_step(_loss, tx, ema_decay))
    history = []
    for _ in range(steps):
        state, metrics = step(state, jnp.ones(3), jax.random.key(key))
        history.append((state, metrics))
    return history


def test_step_is_gradient_descent():
    """SGD on sum((w - 1)^2) has the closed form w - 1 <- (1 - 2 lr) (w - 1)."""
    w0 = init_state(_init, optax.sgd(0.1), jax.random.key(7)).params["w"]
    state, metrics = _run(3)[-1]
    np.testing.assert_allclose(state.params["w"], 1 + 0.8**3 * (w0 - 1), rtol=1e-5)
    before = 1 + 0.8**2 * (w0 - 1)
    np.testing.assert_allclose(metrics["loss"], jnp.sum((before - 1) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(2 * (before - 1)), rtol=1e-5)
    assert int(state.step) == 3


def test_ema_follows_its_own_recursion_with_warmup():
    ema = init_state(_init, optax.sgd(0.1), jax.random.key(7)).params["w"]
    for step, (state, _) in enumerate(_run(15, ema_decay=0.4)):
        decay = min(0.4, (1 + step) / (10 + step))
        ema = decay * ema + (1 - decay) * state.params["w"]
        np.testing.assert_allclose(state.ema_params["w"], ema, rtol=1e-5)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (8, 0.5), (10**6, 0.9)])
def test_ema_decay_warms_up_to_its_limit(step, expected):
    assert float(ema_decay_at(jnp.int32(step), 0.9)) == pytest.approx(expected)


def test_ema_starts_at_params_and_in_its_own_buffers():
    """Shared buffers could not be donated."""
    tx = optax.adam(0.1)
    state = init_state(_init, tx, jax.random.key(0))  # not jitted: jit gives every output its own buffer anyway
    np.testing.assert_array_equal(state.params["w"], state.ema_params["w"])
    assert state.ema_params["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()
    step = jax.jit(make_train_step(_loss, tx, 0.9), donate_argnums=0)
    new, _ = step(state, jnp.ones(3), jax.random.key(0))
    assert state.params["w"].is_deleted() and int(new.step) == 1


def test_ema_is_float32_for_lower_precision_params():
    state = init_state(lambda key: {"w": jnp.ones(3, jnp.bfloat16)}, optax.sgd(0.1), jax.random.key(0))
    assert state.ema_params["w"].dtype == jnp.float32


def test_same_base_key_gives_each_step_another_key():
    noises = [float(metrics["noise"]) for _, metrics in _run(4)]
    assert len(set(noises)) == 4
    assert noises == [float(metrics["noise"]) for _, metrics in _run(4)]
    assert noises[0] != float(_run(1, key=1)[0][1]["noise"])


def test_jit_equals_no_jit():
    tx = optax.adam(0.1)
    state = init_state(_init, tx, jax.random.key(0))
    step = make_train_step(_loss, tx, 0.9)
    plain, _ = step(state, jnp.ones(3), jax.random.key(1))
    jitted, _ = jax.jit(step)(state, jnp.ones(3), jax.random.key(1))
    # Fused arithmetic rounds differently: a few units in the last place.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, jitted)


def test_accumulated_parts_give_the_update_of_the_whole_batch():
    tx = optax.sgd(0.1)
    batch = jnp.arange(24.0).reshape(8, 3)

    def loss_fn(params, batch, key, shift):
        del key
        return jnp.mean((params["w"] - batch - shift) ** 2), {"mean": jnp.mean(batch)}

    def update(accumulate):
        state = init_state(_init, tx, jax.random.key(7))
        step = make_train_step(loss_fn, tx, 0.5, accumulate)
        return jax.jit(step)(state, batch, jax.random.key(0), jnp.ones(3))

    (whole, metrics), (parts, metrics_of_parts) = update(1), update(4)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-6)
    assert metrics.keys() == metrics_of_parts.keys() == {"loss", "mean", "grad_norm"}
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], value, rtol=1e-6)


def test_every_accumulated_part_has_its_own_examples_and_key():
    def loss_fn(params, batch, key):
        return jnp.sum(params["w"]) * 0.0, {"seen": jnp.sum(2.0**batch), "noise": jax.random.normal(key)}

    tx = optax.sgd(0.1)
    state = init_state(_init, tx, jax.random.key(7))
    step = jax.jit(make_train_step(loss_fn, tx, 0.5, 2))
    _, metrics = step(state, jnp.arange(6.0), jax.random.key(0))
    key = jax.random.fold_in(jax.random.key(0), 0)
    noises = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(2)]
    assert float(metrics["seen"]) == 63 / 2 and noises[0] != noises[1]
    np.testing.assert_allclose(metrics["noise"], np.mean(noises), rtol=1e-6)
