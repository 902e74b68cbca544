import jax
import numpy as np
import pytest

from dualspec_jax.diffusion.schedule import add_noise, make_alpha_bar, min_snr_weight, split_prediction, velocity

SCHEDULES = ("cosine", "scaled_linear")


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_power_falls_from_nearly_one(name):
    a = make_alpha_bar(name, 1000)
    assert a.dtype == np.float32 and a.shape == (1000,)
    assert np.all(np.diff(a) < 0) and np.all(a > 0) and a[0] > 0.99
    assert a[-1] < (1e-6 if name == "cosine" else 0.01)


def test_cosine_has_its_closed_form():
    t = np.arange(1, 900)  # up to where beta is cut to 0.999
    f = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(make_alpha_bar("cosine", 1000)[t - 1], f(t) / f(0), rtol=1e-5)


def test_scaled_linear_has_the_published_ends():
    a = make_alpha_bar("scaled_linear", 1000).astype(np.float64)
    np.testing.assert_allclose(1 - a[0], 0.00085, rtol=1e-3)
    np.testing.assert_allclose(1 - a[-1] / a[-2], 0.012, rtol=1e-3)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule = 'linear': must be cosine or scaled_linear"):
        make_alpha_bar("linear", 10)


def draw(n=4096):
    k0, k1 = jax.random.split(jax.random.key(0))
    shape = (n, 2, 2, 1)
    return jax.random.normal(k0, shape), jax.random.normal(k1, shape)


def test_noise_keeps_unit_variance():
    x0, eps = draw()
    a = make_alpha_bar("cosine", 100)
    for t in (0, 50, 99):
        x_t = add_noise(a, x0, eps, np.full(len(x0), t))
        np.testing.assert_allclose(np.var(x_t), 1.0, atol=0.04)  # 16 384 draws: 3.6 standard errors
        np.testing.assert_allclose(np.mean(x_t * x0), a[t] ** 0.5, atol=0.04)


def test_steps_past_the_end_are_clamped():
    x0, eps = draw(2)
    a = make_alpha_bar("cosine", 100)
    np.testing.assert_array_equal(
        add_noise(a, x0, eps, np.array([100, 5000])), add_noise(a, x0, eps, np.array([99, 99]))
    )


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_split_prediction_finds_signal_and_noise(prediction):
    x0, eps = draw(8)
    a, t = make_alpha_bar("scaled_linear", 100), np.arange(8) * 14
    x_t = add_noise(a, x0, eps, t)
    output = velocity(a, x0, eps, t) if prediction == "v" else eps
    found_x0, found_eps = split_prediction(a, x_t, output, t, prediction)
    np.testing.assert_allclose(found_x0, x0, atol=1e-4)
    np.testing.assert_allclose(found_eps, eps, atol=1e-4)


def test_min_snr_weight_caps_the_weight_of_x0():
    a, t = make_alpha_bar("cosine", 1000), np.arange(0, 1000, 37)
    snr = a[t] / (1 - a[t])
    # an error d in v is an error sqrt(1 - a) d in x0, one in eps is sqrt((1 - a) / a) d: the weights undo that
    np.testing.assert_allclose(min_snr_weight(a, t, 5.0, "v"), np.minimum(snr, 5.0) * (1 - a[t]), rtol=1e-3)
    np.testing.assert_allclose(min_snr_weight(a, t, 5.0, "eps"), np.minimum(snr, 5.0) * (1 - a[t]) / a[t], rtol=1e-3)
