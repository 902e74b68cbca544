import jax.numpy as jnp
import numpy as np

from dualspec_jax.diffusion.guidance import guide

X, T = jnp.ones((2, 1, 1, 4)), jnp.array([3, 3])
COND = {"c": jnp.array([2.0, 5.0])}
NULL = {"c": jnp.array([1.0, -1.0])}


def denoiser(x, t, c):
    return x * c[:, None, None, None] + t[:, None, None, None]


def test_scale_one_is_the_conditional_and_zero_the_null():
    for scale, condition in ((1.0, COND), (0.0, NULL)):
        out = guide(denoiser, COND, NULL, jnp.full(4, scale))(X, T)
        np.testing.assert_allclose(out, denoiser(X, T, **condition))


def test_scale_extrapolates_from_the_null():
    out = guide(denoiser, COND, NULL, jnp.full(4, 3.0))(X, T)
    np.testing.assert_allclose(out[:, 0, 0, 0], [3 + 1 + 3 * (2 - 1), 3 - 1 + 3 * (5 + 1)])


def test_each_channel_has_its_own_scale():
    out = guide(denoiser, COND, NULL, jnp.array([0.0, 1.0, 2.0, 4.0]))(X, T)
    np.testing.assert_allclose(out[0, 0, 0], [4.0, 5.0, 6.0, 8.0])


def test_both_are_computed_in_one_call():
    calls = []
    guide(lambda x, t, c: calls.append(x.shape) or denoiser(x, t, c), COND, NULL, jnp.ones(4))(X, T)
    assert calls == [(4, 1, 1, 4)]


def test_outside_the_interval_the_conditional_stands_alone():
    scale, guided = jnp.full(4, 3.0), guide(denoiser, COND, NULL, jnp.full(4, 3.0))
    limited = guide(denoiser, COND, NULL, scale, jnp.array([2.0, 5.0]))
    for t, expected in ((1, denoiser(X, T * 0 + 1, **COND)), (2, guided(X, T * 0 + 2)), (5, guided(X, T * 0 + 5))):
        np.testing.assert_allclose(limited(X, T * 0 + t), expected)
    np.testing.assert_allclose(limited(X, T * 0 + 6), denoiser(X, T * 0 + 6, **COND))
