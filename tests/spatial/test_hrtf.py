import os
from pathlib import Path

import numpy as np
import pytest
import sofar

from dualspec_jax.spatial.hrtf import SPEED_OF_SOUND, Hrtf, default_hrtf, load_hrtf, spherical_head
from dualspec_jax.spatial.scene import render

DATA = os.environ.get("DUALSPEC_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DUALSPEC_DATA is not set")


@pytest.fixture(scope="module")
def kemar():
    return load_hrtf(Path(DATA, "hrtf", "kemar_normal_pinna.sofa"))


@pytest.fixture(scope="module")
def sphere():
    return spherical_head()


def itd_us(ears, sample_rate=16000, low_hz=100.0, high_hz=1500.0, oversample=32):
    """Lag of the largest cross-correlation of the two rows between low_hz and high_hz; positive: the first leads."""
    n = 2 ** int(np.ceil(np.log2(2 * ears.shape[-1])))
    spectrum = np.fft.rfft(ears, n)
    frequency = np.fft.rfftfreq(n, 1 / sample_rate)
    cross = spectrum[1] * np.conj(spectrum[0]) * ((frequency > low_hz) & (frequency < high_hz))
    correlation = np.fft.irfft(cross, n * oversample)
    lag = int(np.argmax(correlation))
    return (lag - n * oversample if lag > n * oversample / 2 else lag) / oversample / sample_rate * 1e6


def ild_db(ears):
    energy = np.sum(np.asarray(ears, np.float64) ** 2, -1)
    return 10 * np.log10(energy[0] / energy[1])


@needs_data
def test_sofa_agrees_with_prepared_npz(kemar):
    prepared = load_hrtf(Path(DATA, "hrtf", "kemar_normal_pinna_16k.npz"))
    assert kemar.sample_rate == 16000 and kemar.hrir.shape[0] == 710 and kemar.hrir.shape[2] <= 256
    azimuths = np.arange(0.0, 360.0, 5.0)
    band = slice(10, 480)  # 160 Hz to 7.5 kHz: below lie too few wavelengths, above the two resamplers' filters differ
    ours, theirs = (20 * np.log10(np.abs(h.spectrum(azimuths)[:, band])) for h in (kemar, prepared))
    assert np.mean(np.abs(ours - theirs)) < 0.3
    for azimuth in (0.0, 30.0, 90.0, 135.0, 270.0):
        assert abs(itd_us(kemar.at(azimuth)) - itd_us(prepared.at(azimuth))) < 5.0
        assert abs(ild_db(kemar.at(azimuth)) - ild_db(prepared.at(azimuth))) < 0.2


@needs_data
def test_frontal_energy_is_one(kemar):
    assert np.mean(np.sum(kemar.at(0.0) ** 2, -1)) == pytest.approx(1.0, abs=1e-4)


@needs_data
def test_left_sources_lead_and_are_louder_on_the_left(kemar):
    assert itd_us(kemar.at(90.0)) == pytest.approx(703, abs=15)  # hrtf/README.md, itself read from samples of 16 kHz
    assert ild_db(kemar.at(90.0)) == pytest.approx(9.3, abs=0.3)
    assert itd_us(kemar.at(270.0)) == pytest.approx(-703, abs=15)


@needs_data
def test_measured_direction_is_returned_unchanged(kemar):
    for azimuth in (0.0, 5.0, 185.0, 355.0):
        row = np.flatnonzero((kemar.elevation_deg == 0) & (np.abs(kemar.azimuth_deg - azimuth) < 1e-6))[0]
        np.testing.assert_array_equal(kemar.at(azimuth), kemar.hrir[row])
        np.testing.assert_array_equal(kemar.at(azimuth - 360.0), kemar.hrir[row])


@needs_data
def test_white_noise_has_the_cues_of_its_direction(kemar):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40000)
    for azimuth in (12.3, 47.5, 88.8, 133.1, 201.7, 302.4, 357.5):
        ears = render(noise, azimuth, kemar).T
        assert abs(itd_us(ears) - itd_us(kemar.at(azimuth))) < 10.0
        assert abs(ild_db(ears) - ild_db(kemar.at(azimuth))) < 0.1


@needs_data
def test_itd_rises_steadily_towards_the_side(kemar):
    itd = np.array([itd_us(h, oversample=256) for h in kemar.at(np.arange(0.0, 75.0, 0.5))])
    steps = np.diff(itd)
    assert np.all(steps > 0) and steps.max() < 10.0  # 0.5 deg: 5 us in the mean


@needs_data
def test_interpolation_beats_crossfade_on_left_out_directions(kemar):
    keep = (kemar.elevation_deg == 0) & (kemar.azimuth_deg % 10 == 0)
    thin = Hrtf(kemar.hrir[keep], kemar.azimuth_deg[keep], kemar.elevation_deg[keep], 16000, "thin", "")
    ours, crossfade = [], []
    for azimuth in np.arange(5.0, 360.0, 10.0):
        truth = kemar.at(azimuth)
        power = np.sum(truth**2)
        ours.append(np.sum((thin.at(azimuth) - truth) ** 2) / power)
        mixed = 0.5 * (kemar.at(azimuth - 5) + kemar.at(azimuth + 5))
        crossfade.append(np.sum((mixed - truth) ** 2) / power)
    assert 10 * np.log10(np.mean(ours)) < -28
    assert np.mean(ours) < 0.2 * np.mean(crossfade)


def test_array_of_azimuths_equals_single_calls(sphere):
    azimuths = np.array([0.0, 2.5, 93.7, 180.0, 359.9])
    many, spectra = sphere.at(azimuths), sphere.spectrum(azimuths)
    assert many.dtype == np.float32 and spectra.shape == (5, 512, 2) and spectra.dtype == np.complex64
    for i, azimuth in enumerate(azimuths):
        np.testing.assert_allclose(many[i], sphere.at(azimuth), atol=1e-7)
        np.testing.assert_allclose(spectra[i], sphere.spectrum(azimuth), atol=1e-5)


def test_spectrum_is_the_transform_of_the_response(sphere):
    expected = np.fft.rfft(sphere.at(33.0), 1024)[:, :512].T
    np.testing.assert_allclose(sphere.spectrum(33.0), expected, atol=1e-5)


def test_sphere_is_mirror_symmetric(sphere):
    for azimuth in (0.0, 35.0, 122.5):
        np.testing.assert_allclose(sphere.at(azimuth), sphere.at(-azimuth)[::-1], atol=2e-4)


def test_sphere_doubles_pressure_on_the_near_side_and_shadows_the_far(sphere):
    # A rigid wall doubles the pressure (+6 dB); below 100 Hz the sphere is too small to matter.
    spectrum = np.abs(sphere.spectrum(100.0))
    low = spectrum[4, 0]
    assert 20 * np.log10(spectrum[384, 0] / low) == pytest.approx(6.0, abs=0.3)
    assert 20 * np.log10(np.abs(sphere.spectrum(45.0))[384, 1] / low) < -5.0


def test_sphere_low_frequency_itd_is_the_closed_form():
    radius = 0.1
    head = spherical_head(radius_m=radius, ear_deg=90.0)
    # At low frequency the surface pressure lags by 1.5 a / c cos(angle) (Kuhn 1977).
    expected = 1.5 * radius / SPEED_OF_SOUND * 2 * np.sin(np.deg2rad(30.0)) * 1e6
    assert itd_us(head.at(30.0), high_hz=250.0) == pytest.approx(expected, rel=0.03)


def test_sphere_with_ears_at_90_cannot_tell_front_from_back():
    head = spherical_head(ear_deg=90.0)
    np.testing.assert_allclose(head.at(40.0), head.at(140.0), atol=1e-5)
    assert np.abs(spherical_head().at(40.0) - spherical_head().at(140.0)).max() > 0.01


def write_sofa(path, *, cartesian=False, right_first=False, delay=0.0, elevation=0.0, sample_rate=48000):
    """Write a set of 12 directions whose ears are unit pulses, 10 samples later and half as loud in the far ear."""
    azimuth = np.arange(0.0, 360.0, 30.0)
    near_left = np.sin(np.deg2rad(azimuth)) > 0.1
    near_right = np.sin(np.deg2rad(azimuth)) < -0.1
    hrir = np.zeros((12, 2, 128))
    for d in range(12):
        hrir[d, 0, 40 + 10 * near_right[d]] = 0.5 if near_right[d] else 1.0
        hrir[d, 1, 40 + 10 * near_left[d]] = 0.5 if near_left[d] else 1.0
    sofa = sofar.Sofa("SimpleFreeFieldHRIR")
    sofa.Data_IR = hrir[:, ::-1] if right_first else hrir
    sofa.Data_SamplingRate = sample_rate
    sofa.Data_Delay = np.full((1, 2), delay)
    ear_y = np.array([[0, -0.09, 0], [0, 0.09, 0]]) if right_first else np.array([[0, 0.09, 0], [0, -0.09, 0]])
    sofa.ReceiverPosition = ear_y
    if cartesian:
        a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
        sofa.SourcePosition = 1.4 * np.stack(
            [np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.full(12, np.sin(e))], axis=1
        )
        sofa.SourcePosition_Type, sofa.SourcePosition_Units = "cartesian", "metre"
    else:
        sofa.SourcePosition = np.stack([azimuth, np.full(12, elevation), np.full(12, 1.4)], axis=1)
    sofar.write_sofa(str(path), sofa)
    return path


@pytest.mark.parametrize("options", [{}, {"cartesian": True}, {"right_first": True}, {"delay": 7.0}])
@pytest.mark.parametrize("sample_rate", [44100, 48000])
def test_sofa_variants_place_the_source_alike(tmp_path, options, sample_rate):
    head = load_hrtf(write_sofa(tmp_path / "a.sofa", sample_rate=sample_rate, **options))
    assert itd_us(head.at(90.0)) == pytest.approx(10 / sample_rate * 1e6, abs=3.0)
    assert ild_db(head.at(90.0)) == pytest.approx(6.02, abs=0.1)
    assert itd_us(head.at(270.0)) == pytest.approx(-10 / sample_rate * 1e6, abs=3.0)


def test_leading_silence_is_cut_and_taps_are_limited(tmp_path):
    head = load_hrtf(write_sofa(tmp_path / "a.sofa", delay=1000.0))
    assert np.abs(head.at(0.0)).argmax() < 16 and head.hrir.shape[-1] <= 256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.sofa", None, "does not exist"),
        ("text.sofa", b"not a sofa file", "not a readable SOFA file"),
        ("a.wav", b"RIFF", "must be .sofa or .npz"),
        ("a.npz", b"PK", "not a readable npz file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_hrtf(tmp_path / name)
    assert name in str(error.value)


def test_set_without_horizontal_directions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no horizontal directions"):
        load_hrtf(write_sofa(tmp_path / "high.sofa", elevation=30.0))


def test_npz_with_gap_or_missing_array_is_refused(tmp_path):
    hrir = np.zeros((2, 2, 32))
    hrir[..., 5] = 1.0
    arrays = {"hrir": hrir, "azimuth_deg": [0.0, 90.0], "elevation_deg": [0.0, 0.0], "sample_rate": 16000}
    np.savez(tmp_path / "gap.npz", **arrays)
    with pytest.raises(ValueError, match="gap of 270 degrees"):
        load_hrtf(tmp_path / "gap.npz")
    del arrays["elevation_deg"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(ValueError, match="lacks the array 'elevation_deg'"):
        load_hrtf(tmp_path / "less.npz")


def test_azimuth_must_be_finite(sphere):
    with pytest.raises(ValueError, match="must be finite"):
        sphere.at(float("nan"))


def test_default_is_the_given_file_then_the_data_folder_then_the_sphere(tmp_path, monkeypatch):
    monkeypatch.delenv("DUALSPEC_DATA", raising=False)
    assert default_hrtf().name == "rigid sphere"
    (tmp_path / "hrtf").mkdir()
    write_sofa(tmp_path / "hrtf" / "b.sofa")
    monkeypatch.setenv("DUALSPEC_DATA", str(tmp_path))
    assert default_hrtf().name == "b.sofa"
    assert default_hrtf(write_sofa(tmp_path / "c.sofa")).name == "c.sofa"
