import numpy as np
import pytest

from dualspec_jax import metrics
from dualspec_jax.spatial.echo import render_in_room, room_response
from dualspec_jax.spatial.hrtf import spherical_head

HEAD = spherical_head()


def test_direct_sound_comes_first_and_the_tail_decays_as_asked():
    response = room_response(HEAD, 70.0, np.random.default_rng(0), rt60_s=0.3)
    assert response.dtype == np.float32 and np.isfinite(response).all()
    direct = HEAD.at(70.0)
    np.testing.assert_allclose(response[:, :30], direct[:, :30], atol=2e-2 * np.abs(direct).max())
    late = [np.sum(response[:, a : a + 800] ** 2) for a in (1600, 3200)]  # 0.1 s apart: 20 dB
    assert 10 * np.log10(late[0] / late[1]) == pytest.approx(20.0, abs=4.0)


def test_more_absorption_is_less_echo():
    energy = []
    for absorption in (0.2, 0.8):
        response = room_response(HEAD, 30.0, np.random.default_rng(3), absorption=absorption)
        energy.append(np.sum(response**2) / np.sum(HEAD.at(30.0) ** 2))
    assert energy[0] > energy[1] > 1.0


def test_a_room_lowers_the_coherence_and_keeps_the_side():
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    response = room_response(HEAD, 60.0, np.random.default_rng(1), absorption=0.3)
    wet = render_in_room(noise, response)
    assert wet.shape == (32000, 2)
    assert metrics.interaural_coherence(wet) < 0.95
    assert metrics.ild_db(wet) > 0.5


def test_bad_rooms_are_refused():
    with pytest.raises(ValueError, match="absorption = 1.0"):
        room_response(HEAD, 0.0, np.random.default_rng(0), absorption=1.0)
    with pytest.raises(ValueError, match="size_m"):
        room_response(HEAD, 0.0, np.random.default_rng(0), size_m=(3.0, 5.0))
