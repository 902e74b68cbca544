import numpy as np
import pytest
import soundfile

from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.scene import (
    PEAK_LIMIT,
    TARGET_RMS,
    ClipError,
    active_frames,
    clipped_share,
    fit_event,
    load_clip,
    normalise,
    normalise_loudness,
    render,
    render_sources,
    trim,
    vary,
)

N = 81920
RATE = 16000


def noise(seconds, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).normal(size=int(seconds * RATE))).astype(np.float32)


def write(path, audio, rate=RATE):
    soundfile.write(str(path), audio, rate, subtype="FLOAT")
    return path


def test_load_clip_reads_mono(tmp_path):
    mono = noise(0.5)
    np.testing.assert_allclose(load_clip(write(tmp_path / "a.wav", mono)), mono, atol=1e-6)


def test_load_clip_brings_other_formats_to_mono_16_khz(tmp_path):
    t = np.arange(44100) / 44100
    tone = (0.3 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
    loaded = load_clip(write(tmp_path / "a.wav", np.stack([tone, 0.5 * tone], 1), 44100))
    expected = 0.75 * 0.3 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert loaded.shape == (16000,)
    np.testing.assert_allclose(loaded[200:-200], expected[200:-200], atol=1e-3)
    opposite = load_clip(write(tmp_path / "b.wav", np.stack([0.9 * tone, -tone], 1), 16000))
    np.testing.assert_allclose(opposite, -tone, atol=1e-6)  # the mean would be almost silent


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(100, np.float32), "silent"),
        (0.02 * noise(0.1), "silent"),
        (np.array([0.1, np.nan], np.float32), "not finite"),
        (np.clip(30 * noise(0.1), -0.8, 0.8), "clipped"),
    ],
)
def test_load_clip_names_a_bad_file(tmp_path, audio, kind):
    with pytest.raises(ClipError, match="bad.wav") as error:
        load_clip(write(tmp_path / "bad.wav", audio), min_peak=0.02, max_clipped=0.01)
    assert error.value.kind == kind


def test_clipped_share_counts_flat_tops_only():
    t = np.arange(RATE) / RATE
    low = np.sin(2 * np.pi * 20 * t)[:, None]
    assert clipped_share(low) < 0.01 and clipped_share(noise(1.0)[:, None]) == 0
    flat = np.clip(low, -0.5, 0.5)
    assert clipped_share(flat) == pytest.approx(2 / 3, abs=0.01)  # |sin| > 1/2 for two thirds of the time


def test_loudness_is_the_same_whatever_the_level_and_the_length():
    import pyloudnorm

    for clip in (noise(3.0), noise(0.2, 1, 0.5), 0.001 * noise(1.0, 2)):
        out = normalise_loudness(clip)
        assert pyloudnorm.Meter(RATE).integrated_loudness(np.resize(out, 3 * RATE)) == pytest.approx(-24, abs=0.3)
    click = np.zeros(RATE, np.float32)
    click[5000] = 0.01
    assert np.abs(normalise_loudness(click)).max() == pytest.approx(PEAK_LIMIT, rel=1e-5)


def test_fit_event_takes_a_level():
    clip = noise(3.0)
    rms, lufs = (fit_event(clip, N, np.random.default_rng(0), level) for level in ("rms", "lufs"))
    np.testing.assert_allclose(rms / np.abs(rms).max(), lufs / np.abs(lufs).max(), atol=1e-5)
    assert np.abs(rms - lufs).max() > 0.001
    with pytest.raises(ValueError, match="level = 'peak'"):
        fit_event(clip, N, np.random.default_rng(0), "peak")


def test_load_clip_names_an_unreadable_file(tmp_path):
    (tmp_path / "x.flac").write_bytes(b"nothing")
    for name in ("x.flac", "gone.flac"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_clip(tmp_path / name)


def test_trim_cuts_quiet_ends_and_keeps_the_event():
    quiet = 1e-5 * noise(1.0, 1)
    event = noise(0.5, 2)
    trimmed = trim(np.concatenate([quiet, event, quiet, quiet]))
    assert len(event) <= len(trimmed) <= len(event) + 0.06 * RATE  # frames of 20 ms and fades of 10 ms on both sides
    lag = np.argmax(np.correlate(trimmed, event, "full")) - len(event) + 1
    np.testing.assert_array_equal(trimmed[lag : lag + len(event)], event)


def test_trim_shortens_long_digital_silence_only():
    long = trim(np.concatenate([noise(0.5), np.zeros(2 * RATE, np.float32), noise(0.5)]))
    short = trim(np.concatenate([noise(0.5), np.zeros(6400, np.float32), noise(0.5)]))
    assert len(long) / RATE == pytest.approx(1.3, abs=0.05)
    assert len(short) / RATE == pytest.approx(1.4, abs=0.05)


def test_normalise_sets_active_rms_or_the_peak():
    event = np.concatenate([noise(0.5, level=0.01), np.zeros(4 * RATE, np.float32)])
    rms = np.sqrt(np.mean(normalise(event)[: RATE // 2] ** 2))
    assert rms == pytest.approx(TARGET_RMS, rel=0.05)
    click = np.zeros(RATE, np.float32)
    click[5000] = 0.01
    assert np.abs(normalise(click)).max() == pytest.approx(PEAK_LIMIT, rel=1e-5)


@pytest.mark.parametrize("seconds", [0.04, 0.3, 1.0, 1.9, 2.5, 5.12, 8.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fit_event_fills_the_clip_without_clicks(seconds, seed):
    t = np.arange(int(seconds * RATE)) / RATE
    tone = (0.2 * np.sin(2 * np.pi * 200 * t)).astype(np.float32)
    out = fit_event(tone, N, np.random.default_rng(seed))
    assert out.shape == (N,) and out.dtype == np.float32
    assert np.abs(out).max() <= PEAK_LIMIT + 1e-6
    # A 64 ms STFT window widens each repetition of a very short event; frames of 20 ms count less of it.
    assert active_frames(out).mean() > (0.35 if seconds > 0.1 else 0.25)
    # A 200 Hz tone moves by at most 2 pi 200 / 16000 of its amplitude per sample; a cut would jump by up to twice it.
    assert np.abs(np.diff(out)).max() < 0.12 * np.abs(out).max()
    assert abs(out[0]) < 1e-3 and abs(out[-1]) < 0.03 * np.abs(out).max()


def test_fit_event_cuts_a_loud_window_of_a_long_clip():
    long = np.concatenate([noise(6.0, level=0.003), noise(6.0, 1, level=0.3)])
    for seed in range(5):
        out = fit_event(long, N, np.random.default_rng(seed))
        assert np.sqrt(np.mean(out**2)) > 0.6 * TARGET_RMS


def test_fit_event_continues_a_steady_sound_without_gaps():
    out = fit_event(noise(2.5), N, np.random.default_rng(0))
    level = np.sqrt(np.mean(out[320:-320].reshape(-1, 320) ** 2, axis=1))
    assert level.min() > 0.7 * np.median(level)


def test_fit_event_repeats_with_gaps_that_differ():
    out = fit_event(noise(0.5), N, np.random.default_rng(3))
    edges = np.flatnonzero(np.diff(np.abs(out) > 0))
    gaps = np.diff(edges)[1::2] / RATE
    gaps = gaps[gaps > 0.05]
    assert len(gaps) >= 4 and gaps.std() > 0.02
    assert gaps.min() >= 0.1 and gaps.max() <= 0.62


def test_fit_event_depends_on_the_generator_only():
    event = noise(0.7)
    first, second, other = (fit_event(event, N, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0


def test_fit_event_refuses_silence():
    with pytest.raises(ValueError, match="only zeros"):
        fit_event(np.zeros(1000, np.float32), N, np.random.default_rng(0))


def test_vary_changes_length_and_pitch_together():
    t = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    seen = set()
    for seed in range(30):
        out = vary(tone, np.random.default_rng(seed))
        ratio = len(out) / len(tone)
        assert 12 / 13 - 1e-3 <= ratio <= 13 / 12 + 1e-3
        peak = np.argmax(np.abs(np.fft.rfft(out))) * RATE / len(out)
        assert peak == pytest.approx(1000 / ratio, abs=1.5)
        seen.add(round(ratio, 3))
    assert len(seen) > 4


def test_render_is_the_convolution_with_both_ears():
    head = spherical_head()
    mono = noise(0.2)
    out = render(mono, 37.5, head)
    for ear in (0, 1):
        expected = np.convolve(mono, head.at(37.5)[ear])[: len(mono)]
        np.testing.assert_allclose(out[:, ear], expected, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.005, 0.25, 1.0])  # shorter than the response; one block; several
def test_render_sources_adds_what_render_gives(seconds):
    head = spherical_head()
    azimuths = np.array([0.0, 91.2, 275.0])
    mono = np.stack([noise(seconds, s) for s in range(3)])
    out = np.asarray(render_sources(mono, head.at(azimuths)))
    expected = sum(render(m, azimuth, head) for m, azimuth in zip(mono, azimuths, strict=True))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 7, 3000])
def test_render_sources_with_other_lengths_of_response(taps):
    rng = np.random.default_rng(taps)
    mono, hrir = noise(0.5)[None], (rng.standard_normal((1, 2, taps)) / taps**0.5).astype(np.float32)
    out = np.asarray(render_sources(mono, hrir))
    for ear in (0, 1):
        np.testing.assert_allclose(out[:, ear], np.convolve(mono[0], hrir[0, ear])[: mono.shape[1]], atol=1e-5)


def test_rendered_clip_ends_do_not_wrap():
    mono = np.zeros(4000, np.float32)
    mono[-1] = 1.0
    out = np.asarray(render_sources(mono[None], spherical_head().at(np.array([90.0]))))
    assert np.abs(out[:3900]).max() < 1e-6
