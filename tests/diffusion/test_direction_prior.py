import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.diffusion.direction_prior import MIN_SCENES, fit_direction_prior, steer

F, C, K = 3, 4, 6
LOUDNESS = np.ones(F * C) / np.sqrt(F * C)  # what varies from sound to sound


def place(azimuth_deg):
    """Return where latents of an azimuth lie: smooth curves, one per component."""
    a = np.deg2rad(np.asarray(azimuth_deg, np.float64))[..., None]
    return np.cos(a * (1 + np.arange(F * C) % K) + np.arange(F * C))


def scenes(azimuth_deg, rng):
    """Draw means over time: the place, anything along LOUDNESS, and next to nothing else."""
    n = len(azimuth_deg)
    return place(azimuth_deg) + 2.0 * rng.normal(size=(n, 1)) * LOUDNESS + 1e-3 * rng.normal(size=(n, F * C))


@pytest.fixture(scope="module")
def prior():
    rng = np.random.default_rng(0)
    azimuth = rng.uniform(0, 360, 4 * MIN_SCENES)
    return fit_direction_prior(scenes(azimuth, rng), azimuth, K)


def generated(azimuth_deg, wrong_by_deg, rng, frames=5):
    """Draw latents [B, t, f, C] of scenes some degrees off, with changes over time, and their right means."""
    right = scenes(azimuth_deg, rng)
    z = right + place(azimuth_deg + wrong_by_deg) - place(azimuth_deg)
    change = rng.normal(size=(frames, 1))
    return np.float32(z[:, None] + change - change.mean()).reshape(len(z), frames, F, C), right


def test_a_wrong_direction_is_set_right_and_the_sound_kept(prior):
    rng, azimuth = np.random.default_rng(1), np.float32([0.0, 37.5, 200.0, 359.0])
    z, right = generated(azimuth, 5.0, rng)
    steered = np.asarray(steer(prior, z, azimuth, np.ones(4, bool), 0.1))
    cues = np.eye(F * C) - np.outer(LOUDNESS, LOUDNESS)  # all but what varies with the sound
    before = (z.mean(1).reshape(4, -1) - right) @ cues
    after = (steered.mean(1).reshape(4, -1) - right) @ cues
    assert np.abs(after).mean() < 0.03 * np.abs(before).mean()
    # Along what varies the clip's own value is kept: it is not drawn to the average sound.
    offset = (right - place(azimuth)) @ LOUDNESS
    np.testing.assert_allclose((steered.mean(1).reshape(4, -1) - place(azimuth)) @ LOUDNESS, offset, atol=0.3)
    assert np.abs(offset).max() > 1.0
    # And what changes over time stays.
    np.testing.assert_allclose(steered - steered.mean(1, keepdims=True), z - z.mean(1, keepdims=True), atol=1e-5)


def test_nothing_changes_without_noise_or_azimuth(prior):
    z, _ = generated(np.float32([10.0, 20.0]), 5.0, np.random.default_rng(2))
    azimuth = np.float32([10.0, 20.0])
    np.testing.assert_allclose(steer(prior, z, azimuth, np.ones(2, bool), 0.0), z, atol=1e-6)
    steered = steer(prior, z, azimuth, np.array([True, False]), 0.1)
    np.testing.assert_array_equal(steered[1], z[1])
    assert np.abs(steered[0] - z[0]).max() > 0.01


def test_azimuths_of_a_grid_are_joined_smoothly():
    """With 12 directions only, more harmonics than they determine must not run wild between them."""
    rng = np.random.default_rng(3)
    azimuth = 30.0 * rng.integers(12, size=2 * MIN_SCENES)
    prior = fit_direction_prior(scenes(azimuth, rng), azimuth)
    z = jnp.zeros((1, 1, F, C))
    between = np.asarray(steer(prior, z, np.float32([15.0]), np.ones(1, bool), 1e6)).ravel()
    wild = np.abs(between - 0.5 * (place(0.0) + place(30.0))).max()
    assert wild < 1.5


def test_too_few_scenes_are_refused():
    with pytest.raises(ValueError, match=f"{MIN_SCENES - 1} scenes; .* at least {MIN_SCENES}"):
        fit_direction_prior(np.zeros((MIN_SCENES - 1, 4)), np.zeros(MIN_SCENES - 1))
