import numpy as np
import pytest
from tiny import tiny_config

from dualspec_jax.prompts import read_scene
from dualspec_jax.self_check import SelfCheck, badness, measure_lufs
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.scene import render

HEAD = spherical_head()
NOISE = 0.1 * np.random.default_rng(0).standard_normal(10240).astype(np.float32)


@pytest.fixture(scope="module")
def check():
    return SelfCheck(tiny_config().audio, HEAD, None)


@pytest.mark.parametrize("azimuth", [30.0, 140.0, 250.0])
def test_rendered_direction_is_found(check, azimuth):
    measured, mel = check(render(NOISE, azimuth, HEAD), read_scene("rain", azimuth + 5.0))
    assert measured["azimuth_deg"] == pytest.approx(azimuth, abs=1.5)
    assert measured["azimuth_error_deg"] == pytest.approx(5.0, abs=1.5)
    assert np.sign(measured["itd_us"]) == np.sign(measured["ild_db"]) == np.sign(180.0 - azimuth)
    assert mel.shape == (64, 64, 2) and not measured["silent"] and measured["event"] is None


def test_the_trained_localiser_needs_no_head():
    check = SelfCheck(tiny_config().audio, None, None)
    measured, _ = check(render(NOISE, 60.0, HEAD), read_scene("rain", 60.0))  # a sphere: front or back is a guess
    lateral = lambda azimuth: np.rad2deg(np.arcsin(np.sin(np.deg2rad(azimuth))))
    assert lateral(measured["azimuth_deg"]) == pytest.approx(60.0, abs=20.0)


def test_short_and_silent_clips_say_what_they_cannot(check):
    silent, _ = check(np.zeros((10240, 2), np.float32), read_scene("rain"))
    assert silent["silent"] and silent["azimuth_deg"] is silent["lufs"] is silent["itd_us"] is None
    short, _ = check(render(NOISE[:3200], 90.0, HEAD), read_scene("rain on my left"))
    assert short["lufs"] is None and short["azimuth_error_deg"] < 5.0


def test_loudness_of_the_standards_sine():
    """A 997 Hz sine at full scale in one ear is -3.01 LUFS (BS.1770-4, annex 1), 0.1 of it 20 dB less."""
    t = np.arange(48000 * 2) / 48000
    ears = np.stack([np.sin(2 * np.pi * 997 * t), 0 * t], axis=1)
    assert measure_lufs(ears, 48000) == pytest.approx(-3.01, abs=0.05)
    assert measure_lufs(0.1 * ears, 48000) == pytest.approx(-23.01, abs=0.05)


def test_badness_ranks_silence_last_and_adds_direction_and_event():
    best = {"silent": False, "azimuth_error_deg": 3.0, "event_score": 0.9}
    assert badness(best) < badness(best | {"azimuth_error_deg": 30.0}) < badness(best | {"event_score": 0.1})
    assert badness(best | {"silent": True}) == float("inf")
    assert badness(best | {"event_score": None}) < badness(best)


def test_events_score_the_asked_label(check):
    class Knows:
        labels = ("dog barking", "rain")

        def __call__(self, mel):
            import jax.numpy as jnp

            return jnp.array([[0.0, jnp.log(3.0)]]), None

    judge = SelfCheck(check.audio, HEAD, Knows())
    clip = render(NOISE, 90.0, HEAD)
    assert judge(clip, read_scene("a dog barking"))[0]["event_score"] == pytest.approx(0.25, abs=1e-4)
    measured, _ = judge(clip, read_scene("a xylophone quartet"))
    assert measured["event"] == "rain" and measured["event_score"] is None
    assert judge.can_rank(read_scene("rain")) and not check.can_rank(read_scene("rain"))
