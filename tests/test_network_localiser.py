import jax.numpy as jnp
import numpy as np
import pytest
from judges import save_random_localiser
from tiny import tiny_config

from dualspec_jax.network_localiser import fit_temperature, load_localiser, read_azimuth


def test_azimuth_is_read_between_outputs_and_across_the_front():
    circle = np.arange(0.0, 360.0, 3.0)
    true = np.array([0.0, 359.2, 61.3, 182.9])
    apart = np.abs((circle - true[:, None] + 180.0) % 360.0 - 180.0)
    azimuth, confidence = read_azimuth(-0.5 * (apart / 3.0) ** 2)
    np.testing.assert_allclose((azimuth - true + 180.0) % 360.0 - 180.0, 0.0, atol=0.7)
    assert np.all(confidence > 0.99)


def test_confidence_counts_a_front_back_doubt():
    logits = np.full((1, 120), -50.0)
    logits[0, [10, 50]] = np.log([0.7, 0.3])  # 30 or 150 degrees
    azimuth, confidence = read_azimuth(logits)
    assert azimuth[0] == pytest.approx(30.0) and confidence[0] == pytest.approx(0.7, abs=1e-6)


def test_temperature_makes_up_for_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 36))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = np.array([rng.choice(36, p=row) for row in p]) * 10.0
    assert fit_temperature(logits, true) == pytest.approx(1.0, rel=0.15)
    assert fit_temperature(3.0 * logits, true) == pytest.approx(3.0, rel=0.15)


def test_localiser_comes_back_with_its_temperature(tmp_path):
    c = tiny_config()
    c.localiser.update(azimuths=36, hidden=(8,))
    for name, temperature in (("one", 1.0), ("two", 2.0)):
        save_random_localiser(tmp_path / name, c, temperature)
    spec = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 512, 2)), jnp.complex64)
    one, two = (load_localiser(tmp_path / name).logits(spec) for name in ("one", "two"))
    assert one.shape == (2, 36)
    np.testing.assert_allclose(one, 2.0 * two, rtol=1e-5)
    with pytest.raises(ValueError, match="no such file"):
        load_localiser(tmp_path / "none")


def test_the_package_ships_a_localiser_of_at_most_3_mb():
    from dualspec_jax.network_localiser import LOCALISER

    assert LOCALISER.stat().st_size <= 3e6
    assert load_localiser().model.azimuths >= 36
