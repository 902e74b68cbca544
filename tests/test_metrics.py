import os
from pathlib import Path

import numpy as np
import pytest

from dualspec_jax import metrics
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.hrtf import load_hrtf, spherical_head
from dualspec_jax.spatial.scene import load_clip, render

RATE = 16000
ROOT = os.environ.get("DUALSPEC_DATA")


def _noise(n=32000, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


def _delayed(mono, microseconds, rate=RATE):
    """Delay by a fraction of samples in the frequency domain; the noise is circular, so nothing is lost."""
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(len(mono), 1 / rate) * microseconds * 1e-6)
    return np.fft.irfft(np.fft.rfft(mono) * turn, len(mono))


def _spec(waveform):
    n_frames = waveform.shape[0] // 160
    return np.asarray(stft(waveform[None].astype(np.float32), n_frames=n_frames))[0]


def _localiser(hrtf):
    return metrics.TemplateLocaliser(hrtf.spectrum(np.arange(360.0)), np.arange(512) * RATE / 1024)


@pytest.mark.parametrize("delay", [-697.3, -312.5, -250.0, -31.0, -4.2, 0.0, 1.7, 62.5, 133.3, 655.0, 900.0])
def test_itd_of_a_pure_delay(delay):
    mono = _noise()
    waveform = np.stack([mono, _delayed(mono, delay)], axis=-1)  # right ear later: left leads, positive
    assert abs(metrics.itd_us(waveform) - delay) < 2.0


def test_itd_in_another_band_and_reach():
    mono = _noise()
    waveform = np.stack([mono, _delayed(mono, 300.0)], axis=-1)
    assert abs(metrics.itd_us(waveform, low_hz=500.0, high_hz=3000.0) - 300.0) < 2.0
    assert abs(metrics.itd_us(waveform, max_us=200.0)) <= 200.0 + 5.0
    other_rate = np.stack([mono, _delayed(mono, 300.0, 48000)], axis=-1)
    assert abs(metrics.itd_us(other_rate, 48000) - 300.0) < 2.0


@pytest.mark.parametrize("gain_db", [-30.0, -3.0, 0.0, 0.5, 12.0])
def test_ild_of_a_pure_gain(gain_db):
    mono = _noise()
    waveform = np.stack([mono * 10 ** (gain_db / 20), mono], axis=-1)
    assert metrics.ild_db(waveform) == pytest.approx(gain_db, abs=1e-6)


def test_ild_counts_its_band_only():
    t = np.arange(16000) / RATE
    low, high = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 4000 * t)
    waveform = np.stack([10 * low + high, low + 2 * high], axis=-1)
    assert metrics.ild_db(waveform) == pytest.approx(-20 * np.log10(2), abs=1e-6)
    assert metrics.ild_db(waveform, low_hz=100.0, high_hz=1000.0) == pytest.approx(20.0, abs=1e-6)


def test_swapping_the_ears_negates_both_cues():
    waveform = render(_noise(), 70.0, spherical_head())
    swapped = waveform[:, ::-1]
    assert metrics.itd_us(waveform) > 200.0 and metrics.ild_db(waveform) > 3.0
    assert metrics.itd_us(swapped) == pytest.approx(-metrics.itd_us(waveform), abs=1e-3)
    assert metrics.ild_db(swapped) == pytest.approx(-metrics.ild_db(waveform), abs=1e-6)


def test_silence_has_no_cues():
    silence = np.zeros((16000, 2))
    assert np.isnan(metrics.itd_us(silence))
    assert np.isnan(metrics.ild_db(silence))
    assert np.isnan(metrics.itd_us(np.stack([_noise(), np.zeros(32000)], axis=-1)))  # one ear only
    assert metrics.peak_dbfs(silence) == -np.inf
    assert np.isnan(_localiser(spherical_head()).locate(_spec(silence)))


def test_ild_per_band_of_a_known_filter():
    t = np.arange(16000) / RATE
    low, high = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 4000 * t)
    waveform = np.stack([10 * low + high, low + 2 * high], axis=-1)
    np.testing.assert_allclose(
        metrics.ild_bands_db(waveform, edges_hz=(200.0, 1000.0, 8000.0)), [20.0, -20 * np.log10(2)], atol=1e-6
    )
    assert len(metrics.ild_bands_db(waveform)) == len(metrics.ILD_EDGES_HZ) - 1


def test_coherence_of_one_source_of_none_and_between():
    mono, other = _noise(160000), _noise(160000, seed=1)
    pair = lambda share: np.stack([mono, 0.3 * (np.sqrt(share) * mono + np.sqrt(1 - share) * other)], axis=-1)
    assert metrics.interaural_coherence(pair(1.0)) == pytest.approx(1.0, abs=1e-9)
    assert metrics.interaural_coherence(pair(0.0)) < 0.08  # 312 frames: about sqrt(pi / 4 / n)
    assert metrics.interaural_coherence(pair(0.5)) == pytest.approx(np.sqrt(0.5), abs=0.03)
    assert metrics.interaural_coherence(render(mono.astype(np.float32), 75.0, spherical_head())) > 0.98
    assert np.isnan(metrics.interaural_coherence(pair(1.0)[:1200]))  # one frame
    assert np.isnan(metrics.interaural_coherence(pair(1.0) * np.array([1.0, 0.0])))
    assert not np.isnan(metrics.interaural_coherence(pair(1.0)[:1200], frame=256))


def test_sides():
    side = metrics.same_side([10.0, 200.0, 170.0, 0.0, 5.0, np.nan], [90.0, 90.0, 30.0, 30.0, 10.0, 90.0])
    np.testing.assert_array_equal(side, [1, 0, 1, 0, np.nan, np.nan])


def test_circular_mean_and_deviation():
    mean, spread = metrics.circular_mean_std([350.0, 10.0, np.nan])
    assert mean % 360.0 == pytest.approx(0.0, abs=1e-6) or mean == pytest.approx(360.0)
    assert spread == pytest.approx(10.0, rel=0.01)
    assert metrics.circular_mean_std([77.0])[1] == pytest.approx(0.0, abs=1e-5)
    assert metrics.circular_mean_std([0.0, 120.0, 240.0])[1] > 300.0
    assert all(np.isnan(metrics.circular_mean_std([np.nan])))


def test_peak():
    assert metrics.peak_dbfs(np.array([[0.1, -0.5], [0.2, 0.0]])) == pytest.approx(-6.0206, abs=1e-4)


def test_circular_error():
    np.testing.assert_allclose(
        metrics.circular_error([350, 10, 0, 180, 90], [10, 350, 360, 0, 90]), [20, 20, 0, 180, 0]
    )


def test_lateral_angle():
    azimuth = [0, 30, 90, 150, 180, 210, 270, 330]
    np.testing.assert_allclose(metrics.lateral_deg(azimuth), [0, 30, 90, 30, 0, -30, -90, -30], atol=1e-5)


def test_front_back_is_scored_off_the_median_plane_and_off_the_ear_axis():
    scored = metrics.front_back_scored([0, 14, 15, 30, 75, 76, 90, 105, 150, 165, 166, 180, 210, 270, 330])
    assert scored.tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1]


def test_azimuth_errors():
    errors = metrics.azimuth_errors([148.0, 32.0, 175.0, 270.0, 310.0], [30.0, 30.0, 0.0, 90.0, 330.0])
    np.testing.assert_allclose(errors["azimuth"], [118, 2, 5, 180, 20], atol=1e-5)
    np.testing.assert_allclose(errors["lateral"], [2, 2, 5, 180, 20], atol=1e-5)
    np.testing.assert_allclose(errors["resolved"], [2, 2, 5, 180, 20], atol=1e-5)
    np.testing.assert_array_equal(errors["front_back"], [1, 0, np.nan, np.nan, 0])


def test_localiser_finds_noise_at_azimuths_between_the_measured_ones():
    hrtf = spherical_head()  # measured every 5 degrees
    localiser = _localiser(hrtf)
    for i, azimuth in enumerate((2.5, 182.1, 27.3, 61.0, 118.7, 152.2, 203.9, 297.5, 341.6)):
        found = localiser.locate(_spec(render(_noise(seed=i).astype(np.float32), azimuth, hrtf)))
        assert float(metrics.azimuth_errors(found, azimuth)["azimuth"]) < 1.0, (azimuth, found)


def test_localiser_mirrors_when_the_ears_are_swapped():
    hrtf = spherical_head()
    localiser = _localiser(hrtf)
    waveform = render(_noise().astype(np.float32), 55.0, hrtf)
    mirrored = localiser.locate(_spec(waveform[:, ::-1]))
    assert metrics.circular_error(mirrored, 360.0 - localiser.locate(_spec(waveform))) < 0.1


def test_localiser_scores_fall_with_the_level_error():
    hrtf = spherical_head()
    spec = _spec(render(_noise().astype(np.float32), 40.0, hrtf))
    responses, freqs = hrtf.spectrum(np.arange(360.0)), np.arange(512) * RATE / 1024
    deaf = metrics.TemplateLocaliser(responses, freqs, ild_weight=0.0, exponent=0.5)
    wrong = spec * np.array([1.0, 4.0])  # 12 dB too loud on the right: only the phase still points to 40 degrees
    assert metrics.circular_error(deaf.locate(wrong), 40.0) < 2.0
    strict = metrics.TemplateLocaliser(responses, freqs, ild_weight=0.1)
    assert strict.scores(wrong)[40] < strict.scores(spec)[40]


def test_coherence_power_makes_the_localiser_proof_against_a_diffuse_field():
    hrtf, rng = spherical_head(), np.random.default_rng(0)
    waveform = render(_noise().astype(np.float32), 75.0, hrtf)
    waveform = waveform + 1.5 * np.std(waveform) * rng.standard_normal(waveform.shape)
    responses, freqs = hrtf.spectrum(np.arange(360.0)), np.arange(512) * RATE / 1024
    errors = [
        metrics.azimuth_errors(
            metrics.TemplateLocaliser(responses, freqs, coherence_power=p).locate(_spec(waveform)), 75.0
        )
        for p in (0.0, 4.0)
    ]
    assert float(errors[1]["lateral"]) < 0.5 * float(errors[0]["lateral"])


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="needs DUALSPEC_DATA")
def test_kemar_localises_real_recordings():
    hrtf = load_hrtf(next((Path(ROOT) / "hrtf").glob("*.sofa")))
    localiser = _localiser(hrtf)
    paths = sorted((Path(ROOT) / "events" / "audio").glob("*dog*"))[:6]
    assert paths
    azimuths = (20.0, 67.0, 131.0, 228.0, 289.0, 343.0)
    found = [
        localiser.locate(_spec(render(load_clip(path), azimuth, hrtf)))
        for path, azimuth in zip(paths, azimuths, strict=False)
    ]
    assert np.median(metrics.circular_error(found, azimuths[: len(found)])) < 1.0
    assert np.mean(metrics.azimuth_errors(found, azimuths[: len(found)])["lateral"]) < 2.0
