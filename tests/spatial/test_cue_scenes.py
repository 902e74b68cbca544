import numpy as np
import pytest

from dualspec_jax.spatial import cue_scenes
from dualspec_jax.spatial.cue_scenes import make_cue_scenes
from dualspec_jax.spatial.hrtf import spherical_head


@pytest.fixture(scope="module")
def scenes():
    small = pytest.MonkeyPatch()
    small.setattr(cue_scenes, "HEAD_RADII_M", (0.0875, 0.09))
    made = make_cue_scenes(spherical_head(radius_m=0.08), n_fft=256, n_bins=128)
    small.undo()
    return made


def test_scenes_are_possible_statistics_and_seeded(scenes):
    rng = np.random.default_rng(0)
    for azimuth in (0.0, 77.0, 200.0, 359.6):
        x = scenes.draw(azimuth, rng)
        assert x.shape == (128, 4) and x.dtype == np.float32 and np.isfinite(x).all()
        assert np.all(x[:, :2] > 0)
        assert np.all(x[:, 2] ** 2 + x[:, 3] ** 2 <= x[:, 0] * x[:, 1] * (1 + 1e-4))
    first, again = (scenes.draw(30.0, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_ear_towards_the_source_is_louder_and_ahead(scenes):
    rng = np.random.default_rng(1)
    for azimuth, sign in ((60.0, 1), (300.0, -1)):
        drawn = np.stack([scenes.draw(azimuth, rng) for _ in range(60)])
        ild = np.log(drawn[:, 20:, 0] / drawn[:, 20:, 1]).mean(axis=1)
        phase = np.angle(np.sum(drawn[:, 2:8, 2] + 1j * drawn[:, 2:8, 3], axis=1))  # 125 to 500 Hz: no wrap
        assert np.mean(np.sign(ild) == sign) > 0.9 and np.mean(np.sign(phase) == sign) > 0.9


def test_a_measured_head_is_half_of_the_draws(scenes):
    assert scenes.measured.mean() == pytest.approx(0.5)
    assert not make_cue_scenes(n_fft=64, n_bins=32).measured.any()


def test_a_larger_head_has_its_features_lower_in_frequency():
    head = spherical_head().spectrum(np.array([90.0]), 256, 128)
    larger = cue_scenes._scale_frequencies(head, 1.1)
    np.testing.assert_allclose(np.abs(larger[0, 50]), np.abs(head[0, 55]), rtol=1e-3)
