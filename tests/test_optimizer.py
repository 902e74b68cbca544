import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dualspec_jax import config as config_lib
from dualspec_jax.optimizer import decay_mask, make_optimizer, make_schedule


def _config(**overrides):
    config = config_lib.default().train.diffusion
    with config.unlocked():
        config.update(dict(lr=0.1, warmup_steps=0, steps=100) | overrides)
    return config


def _first_update(config, grads, params):
    tx, _ = make_optimizer(config)
    return tx.update(grads, tx.init(params), params)[0]


def test_schedule_warms_up_linearly_then_follows_the_cosine():
    schedule = make_schedule(lr=2.0, warmup_steps=4, steps=14, final_lr_ratio=0.1)
    np.testing.assert_allclose([schedule(i) for i in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert float(schedule(4)) == pytest.approx(2.0)
    assert float(schedule(9)) == pytest.approx(2.0 * 0.55)  # half way: the mean of 1 and final_lr_ratio
    assert float(schedule(14)) == pytest.approx(0.2)
    assert float(schedule(1000)) == pytest.approx(0.2)


@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 10), (10, 10), (100, 2), (0, 1)])
def test_schedule_stays_in_range_for_odd_lengths(warmup_steps, steps):
    schedule = make_schedule(1.0, warmup_steps, steps, 0.02)
    rates = np.array([schedule(i) for i in range(steps)])
    assert np.all(rates > 0) and np.all(rates <= 1.0)


def test_decay_mask_takes_kernels_and_embeddings_only():
    params = {
        "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "heads": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((3, 4))},  # DenseGeneral's bias has two axes
        "embed": {"embedding": jnp.ones((5, 2))},
        "norm": {"scale": jnp.ones(3), "weight": jnp.ones(3)},
        "freq_embedding": jnp.ones((4, 2)),
    }
    expected = {
        "dense": {"kernel": True, "bias": False},
        "heads": {"kernel": True, "bias": False},
        "embed": {"embedding": True},
        "norm": {"scale": False, "weight": False},
        "freq_embedding": True,
    }
    assert decay_mask(params) == expected


def test_weight_decay_shrinks_only_masked_params():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates = _first_update(_config(weight_decay=0.3), zeros, params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.3, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


@pytest.mark.parametrize(("grad_clip", "scale"), [(0.5, 0.1), (None, 1.0), (50.0, 1.0)])
def test_clipping_scales_the_global_norm(grad_clip, scale):
    """Seen in Adam's first moment, (1 - b1) times the clipped gradient, since Adam's update itself has no scale."""
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx, _ = make_optimizer(_config(grad_clip=grad_clip, b1=0.75))
    _, opt_state = tx.update(grads, tx.init(params), params)
    mu = optax.tree.get(opt_state, "mu")
    np.testing.assert_allclose([mu["a"][0], mu["b"][0]], [0.25 * 3 * scale, 0.25 * 4 * scale], rtol=1e-5)


def test_update_uses_the_schedule_and_both_betas():
    """Two steps of Adam on a constant gradient, by hand."""
    config = _config(b1=0.8, b2=0.7, weight_decay=0.0, grad_clip=None, warmup_steps=2, lr=0.4)
    tx, schedule = make_optimizer(config)
    params = {"a": jnp.zeros(1)}
    opt_state = tx.init(params)
    m = v = 0.0
    for step, g in enumerate((1.0, -3.0)):
        updates, opt_state = tx.update({"a": jnp.array([g])}, opt_state, params)
        m, v = 0.8 * m + 0.2 * g, 0.7 * v + 0.3 * g * g
        m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.7 ** (step + 1))
        expected = -float(schedule(step)) * m_hat / (np.sqrt(v_hat) + 1e-8)
        np.testing.assert_allclose(updates["a"], expected, rtol=1e-5)
