import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax import config
from dualspec_jax.diffusion import solvers
from dualspec_jax.diffusion.schedule import add_noise, make_alpha_bar, velocity
from dualspec_jax.diffusion.solvers import advance, sample_latent, solver_rows, start_carry, trailing_timesteps

ALPHA_BAR = make_alpha_bar("cosine", 1000)


def gaussian_denoiser(mean, std, alpha_bar=ALPHA_BAR):
    """Return the exact v-prediction for data distributed as N(mean, std^2)."""

    def denoiser(x_t, t):
        a = jnp.asarray(alpha_bar)[t][:, None, None, None]
        gain = jnp.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        x0 = mean + gain * (x_t - jnp.sqrt(a) * mean)
        eps = (x_t - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)
        return jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * x0

    return denoiser


def sample(denoiser, n=4, shape=(2, 2, 3), seed=0, keys=None, noise=None, **options):
    noise = jax.random.normal(jax.random.key(seed), (n, *shape)) if noise is None else noise
    keys = jax.random.split(jax.random.key(seed + 1), len(noise)) if keys is None else keys
    run = jax.jit(lambda noise, keys: sample_latent(denoiser, noise, keys, ALPHA_BAR, **options))
    return np.asarray(run(noise, keys)), np.asarray(noise)


@pytest.mark.parametrize("steps", [1, 7, 25, 1000])
def test_timesteps_start_at_the_noisiest_and_fall(steps):
    t = trailing_timesteps(1000, steps)
    assert len(t) == steps and t[0] == 999 and np.all(np.diff(t) < 0) and t[-1] >= 0
    gaps = -np.diff(np.append(t, -1))
    assert gaps.max() - gaps.min() <= 1
    warped = trailing_timesteps(1000, steps, 2.0)
    assert len(warped) == steps and warped[0] == 999 and np.all(np.diff(warped) < 0) and warped[-1] >= 0
    assert np.all(warped >= t) and (steps in (1, 1000) or warped[1] > t[1])


def test_without_noise_a_gaussian_is_mapped_in_closed_form():
    """For data N(m, s^2) the flow is x0 = m + s * x_T (x_T of unit variance): DDIM meets it as steps grow."""
    mean, std = 0.7, 0.4
    errors = []
    for steps in (25, 100, 400):
        x, noise = sample(gaussian_denoiser(mean, std), steps=steps)
        errors.append(np.abs(x - (mean + std * noise)).max())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_without_noise_each_step_is_the_closed_form():
    """With the exact denoiser every DDIM step is affine in x_t; the product of the steps is the sample."""
    mean, std, steps = 0.3, 0.8, 6
    x, noise = sample(gaussian_denoiser(mean, std), steps=steps)
    a_all = ALPHA_BAR.astype(np.float64)[trailing_timesteps(1000, steps)]
    expected = noise.astype(np.float64)
    for a, a_prev in zip(a_all, np.append(a_all[1:], 1.0), strict=True):
        x0 = mean + np.sqrt(a) * std**2 / (a * std**2 + 1 - a) * (expected - np.sqrt(a) * mean)
        eps = (expected - np.sqrt(a) * x0) / np.sqrt(1 - a)
        expected = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev) * eps
    np.testing.assert_allclose(x, expected, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmpp_2m", 0.0), ("unipc", 0.0)])
def test_a_denoiser_that_knows_x0_returns_it(steps, solver, eta):
    x0 = jax.random.normal(jax.random.key(9), (4, 2, 2, 3))

    def denoiser(x_t, t):
        a = jnp.asarray(ALPHA_BAR)[t][:, None, None, None]
        return velocity(ALPHA_BAR, x0, (x_t - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a), t)

    x, _ = sample(denoiser, steps=steps, solver=solver, eta=eta)
    np.testing.assert_allclose(x, x0, atol=1e-4)


def test_eps_and_v_give_the_same_sample():
    alpha_bar = make_alpha_bar("scaled_linear", 100)
    x0 = jax.random.normal(jax.random.key(2), (2, 2, 2, 3))
    noise = add_noise(alpha_bar, x0, jax.random.normal(jax.random.key(3), x0.shape), np.array([99, 99]))
    signal = lambda t: jnp.sqrt(jnp.asarray(alpha_bar)[t])[:, None, None, None]
    rest = lambda t: jnp.sqrt(1 - jnp.asarray(alpha_bar)[t])[:, None, None, None]
    eps = lambda x, t: jnp.tanh(x)
    v = lambda x, t: signal(t) * eps(x, t) - rest(t) * (x - rest(t) * eps(x, t)) / signal(t)
    keys = jax.random.split(jax.random.key(4), 2)
    a = sample_latent(eps, noise, keys, alpha_bar, steps=10, prediction="eps")
    b = sample_latent(v, noise, keys, alpha_bar, steps=10, prediction="v")
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 1.0), ("unipc", 0.0)])
def test_a_sample_does_not_depend_on_its_batch(solver, eta):
    denoiser = gaussian_denoiser(0.0, 0.5)
    keys = jax.random.split(jax.random.key(5), 4)
    noise = jax.random.normal(jax.random.key(6), (4, 2, 2, 3))
    together, _ = sample(denoiser, noise=noise, keys=keys, steps=5, solver=solver, eta=eta)
    for i in range(4):
        alone, _ = sample(denoiser, noise=noise[i : i + 1], keys=keys[i : i + 1], steps=5, solver=solver, eta=eta)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def test_keys_matter_only_with_noise():
    denoiser, noise = gaussian_denoiser(0.0, 0.5), jax.random.normal(jax.random.key(6), (2, 2, 2, 3))
    a, b = (jax.random.split(jax.random.key(k), 2) for k in (1, 2))
    run = lambda keys, eta: sample(denoiser, noise=noise, keys=keys, steps=5, eta=eta)[0]
    np.testing.assert_array_equal(run(a, 0.0), run(b, 0.0))
    assert np.abs(run(a, 1.0) - run(b, 1.0)).max() > 0.1


def test_full_noise_has_the_variance_of_ddpm():
    """One step at eta = 1 from a fixed x_t: mean and variance are those of q(x_prev | x_t, x0)."""
    n, value, target = 20000, 1.3, 0.4
    t, t_prev = trailing_timesteps(1000, 2)
    a, a_prev = ALPHA_BAR[[t, t_prev]].astype(np.float64)
    seen = []

    def denoiser(x_t, step):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x_t)
        s = jnp.asarray(ALPHA_BAR)[step][:, None, None, None]
        return velocity(ALPHA_BAR, jnp.full_like(x_t, target), (x_t - jnp.sqrt(s) * target) / jnp.sqrt(1 - s), step)

    noise = jnp.full((n, 1, 1, 1), value)
    jax.block_until_ready(
        sample_latent(denoiser, noise, jax.random.split(jax.random.key(0), n), ALPHA_BAR, steps=2, eta=1.0)
    )
    jax.effects_barrier()
    beta = 1 - a / a_prev
    mean = np.sqrt(a_prev) * beta / (1 - a) * target + np.sqrt(a / a_prev) * (1 - a_prev) / (1 - a) * value
    variance = (1 - a_prev) / (1 - a) * beta
    assert len(seen) == 2
    np.testing.assert_allclose(seen[1].mean(), mean, atol=4 * np.sqrt(variance / n))
    np.testing.assert_allclose(seen[1].var(), variance, rtol=0.05)  # 5 standard errors


def error_at(solver, steps, span=(-1, 1), mean=0.7, std=0.4):
    """Integrate the flow of N(mean, std^2) over a span of half log SNR in even steps; return the largest error.

    The flow keeps (x - signal mean) / sqrt(signal^2 std^2 + noise^2), so its end is known exactly.
    """
    alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(*span, steps + 1)))
    rows = solver_rows(alpha_bar, np.arange(steps), solver, end=alpha_bar[-1])
    score = np.linspace(-2, 2, 8).reshape(2, 2, 2, 1)
    point = lambda a: np.sqrt(a) * mean + score * np.sqrt(a * std**2 + 1 - a)
    denoiser = gaussian_denoiser(mean, std, jnp.asarray(alpha_bar, jnp.float32))
    keys = jax.random.split(jax.random.key(0), 2)
    start = start_carry(jnp.asarray(point(alpha_bar[0]), jnp.float32))
    end = jax.jit(lambda c: advance(denoiser, c, keys, jnp.asarray(alpha_bar, jnp.float32), rows))(start)[0]
    return np.abs(np.asarray(end) - point(alpha_bar[-1])).max()


@pytest.mark.parametrize(
    ("solver", "order", "span"), [("ddim", 1.0, (-3, 2)), ("dpmpp_2m", 2.0, (-1, 1)), ("unipc", 3.0, (-3, 2))]
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, order, span):
    coarse, fine = error_at(solver, 16, span), error_at(solver, 32, span)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_higher_order_and_correction_are_more_exact_at_ten_steps():
    ddim, dpmpp, unipc = (error_at(solver, 10) for solver in ("ddim", "dpmpp_2m", "unipc"))
    assert unipc < 0.7 * dpmpp < 0.3 * ddim


def test_rows_in_parts_give_the_same_sample():
    """Only so can a callback look on between two steps."""
    denoiser, noise = gaussian_denoiser(0.2, 0.5), jax.random.normal(jax.random.key(6), (2, 2, 2, 3))
    keys = jax.random.split(jax.random.key(5), 2)
    rows = solver_rows(ALPHA_BAR, trailing_timesteps(1000, 5), "unipc")
    carry = start_carry(noise)
    for i in range(5):
        carry = advance(denoiser, carry, keys, ALPHA_BAR, solvers.Rows(*(x[i : i + 1] for x in rows)))
    whole = advance(denoiser, start_carry(noise), keys, ALPHA_BAR, rows)
    np.testing.assert_allclose(carry[0], whole[0], atol=1e-5)


def test_solvers_are_those_of_the_config():
    assert tuple(solvers._SOLVERS) == config.SOLVERS


@pytest.mark.parametrize(
    ("options", "message"),
    [({"solver": "euler"}, "solver = 'euler'"), ({"solver": "unipc", "eta": 0.5}, "eta = 0.5: .* needs solver ddim")],
)
def test_impossible_solver_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        solver_rows(ALPHA_BAR, trailing_timesteps(1000, 5), **options)
