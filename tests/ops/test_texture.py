import jax.numpy as jnp
import numpy as np

from dualspec_jax.ops.texture import pool_frames, texture_statistics

MEL = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32)


def test_pooling_averages_energies():
    pooled = pool_frames(MEL[:, :63], 2)
    assert pooled.shape == (2, 31, 32)
    np.testing.assert_allclose(np.exp(2 * pooled[:, 3]), np.exp(2 * MEL[:, 6:8]).mean(axis=1), rtol=1e-4)


def test_statistics_ignore_level_and_moment_but_not_tempo():
    base = np.asarray(texture_statistics(MEL, 50.0))
    assert np.isfinite(base).all()
    np.testing.assert_allclose(texture_statistics(MEL + 3.0, 50.0), base, atol=2e-3)
    slow = jnp.repeat(MEL[:, :32], 2, axis=1)
    assert np.abs(np.asarray(texture_statistics(slow, 50.0)) - base).mean() > 0.1


def test_statistics_of_silence_and_of_very_short_clips_are_finite():
    assert np.isfinite(texture_statistics(np.full((1, 64, 32), -11.5, np.float32), 50.0)).all()
    assert np.isfinite(texture_statistics(MEL[:, :5], 50.0)).all()
