import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.diffusion.guidance import guide, guide_to_event
from dualspec_jax.diffusion.schedule import make_alpha_bar, shift_prediction, split_prediction

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


def test_content_channels_follow_their_own_condition():
    words, mask = {"c": jnp.array([4.0, 0.0])}, jnp.array([True, True, False, False])
    out = guide(denoiser, COND, NULL, jnp.full(4, 3.0), content=(words, mask))(X, T)
    expected = guide(denoiser, COND, NULL, jnp.full(4, 3.0))(X, T)
    np.testing.assert_allclose(out[..., 2:], expected[..., 2:])
    np.testing.assert_allclose(out[..., :2], guide(denoiser, words, NULL, jnp.full(4, 3.0))(X, T)[..., :2])
    outside = guide(denoiser, COND, NULL, jnp.full(4, 3.0), jnp.array([5.0, 6.0]), content=(words, mask))(X, T)
    np.testing.assert_allclose(outside[:, 0, 0], [[7.0, 7.0, 5.0, 5.0], [3.0, 3.0, 8.0, 8.0]])


def test_rescale_brings_back_the_deviation_of_each_group():
    x, mask = jax.random.normal(jax.random.key(0), (2, 8, 4, 6)), jnp.arange(6) < 4
    deviation = lambda y: np.stack([np.std(y[..., :4], axis=(1, 2, 3)), np.std(y[..., 4:], axis=(1, 2, 3))])
    scaled = lambda x, t, c: x * c[:, None, None, None]
    make = lambda rescale: guide(scaled, COND, NULL, jnp.full(6, 3.0), content=(COND, mask), rescale=rescale)(x, T)
    wanted, plain = deviation(scaled(x, T, COND["c"])), deviation(make(0.0))
    np.testing.assert_allclose(deviation(make(1.0)), wanted, rtol=1e-4)
    np.testing.assert_allclose(deviation(make(0.7)), 0.3 * plain + 0.7 * wanted, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_clean_content_moves_to_where_the_event_is_more_probable(prediction):
    """The event is probable where channel 0 is large: by the closed form, and not at all where it is sure already."""
    alpha_bar = make_alpha_bar("cosine", 1000)
    keys = jax.random.split(jax.random.key(0), 2)
    x_t, output = (jax.random.normal(k, (3, 8, 4, 4)) for k in keys)
    t, is_content = jnp.full(3, 400), jnp.arange(4) < 2
    offset = jnp.array([0.0, -1.0, 1e3])  # the third sample is sure

    def log_probability(x0):
        return jax.nn.log_sigmoid(jnp.sum(x0[..., 0], axis=(1, 2)) + jnp.sum(x0[..., 3], axis=(1, 2)) + offset)

    move = lambda scale: guide_to_event(lambda x, t: output, log_probability, scale, alpha_bar, prediction, is_content)
    np.testing.assert_allclose(move(0.0)(x_t, t), output, atol=1e-6)
    clean = lambda output: split_prediction(alpha_bar, x_t, output, t, prediction)[0]
    moved = clean(move(0.5)(x_t, t)) - clean(output)
    length = 0.5 * (1.0 - jnp.exp(log_probability(clean(output)))) * jnp.std(clean(output)[..., :2], axis=(1, 2, 3))
    np.testing.assert_allclose(moved[..., 0], np.broadcast_to(length[:, None, None] * 2**0.5, (3, 8, 4)), rtol=0.05)
    np.testing.assert_allclose(moved[..., 1:], 0.0, atol=1e-5)  # of no use, or not to be moved
    assert np.abs(moved[2]).max() < 1e-5 < np.abs(moved[:2, ..., 0]).min()


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_a_shift_of_the_output_shifts_the_clean_latent_by_as_much(prediction):
    alpha_bar = make_alpha_bar("cosine", 1000)
    x_t, output, shift = jax.random.normal(jax.random.key(0), (3, 2, 8, 4, 4))
    t = jnp.array([10, 900])
    clean = lambda output: split_prediction(alpha_bar, x_t, output, t, prediction)[0]
    shifted = clean(shift_prediction(alpha_bar, output, shift, t, prediction))
    np.testing.assert_allclose(shifted - clean(output), shift, atol=1e-4)
