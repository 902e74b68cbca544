"""The kernels in C++ against the readable definitions in JAX."""

import jax
import numpy as np
import pytest

from dualspec_jax.native import audio
from dualspec_jax.ops.analysis import analyse_clips, clip_features
from dualspec_jax.ops.binaural import floor_powers, spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.scene import render_sources

pytestmark = pytest.mark.skipif(not audio.library.available(), reason="needs a C++ compiler")

N, BINS, MELS = 20011, 512, 40


def make_clips(batch, n=N):
    rng = np.random.default_rng(batch)
    noise = 0.1 * rng.standard_normal((batch, n, 2)) @ [[1.0, 0.5], [0.0, 0.3]]
    return np.float32(noise * (np.arange(n)[:, None] % 9000 > 3000))  # with silence: the floors matter there


def make_responses(batch, bins=BINS):
    rng = np.random.default_rng(batch)
    return (rng.standard_normal((batch, bins, 2)) + 1j * rng.standard_normal((batch, bins, 2))).astype(np.complex64)


def sizes(**other):
    return {"hop_length": 160, "n_frames": 100, "mel_floor": 1e-5, "stft_floor": 1e-3, "average_frames": 4} | other


@pytest.mark.parametrize(
    "bins, other",
    [
        (512, {}),
        (512, {"n_frames": 250}),  # past the end of the clip
        (512, {"average_frames": 1}),
        (512, {"average_frames": 3, "hop_length": 256, "n_frames": 33}),
        (512, {"average_frames": 8, "mel_floor": 1e-2, "stft_floor": 1e-2}),
        (256, {"n_frames": 1}),
    ],
    ids=["default", "past_the_end", "no_average", "odd_average", "floors", "one_frame"],
)
def test_analysis_agrees_with_the_readable_definition(bins, other):
    waves, h, filters = make_clips(3), make_responses(3, bins), mel_filterbank(n_mels=MELS, n_bins=bins)
    kinds = sizes(**other)
    mel, features = audio.analyse(waves, floor_powers(h, kinds["stft_floor"]), filters, **kinds)
    spec = stft(waves, n_frames=kinds["n_frames"], hop_length=kinds["hop_length"], n_bins=bins)
    np.testing.assert_allclose(mel, log_mel(spec, filters, kinds["mel_floor"]), atol=1e-4)
    expected = spatial_features(
        spec, floor=kinds["stft_floor"], average_frames=kinds["average_frames"], floor_response=h
    )
    np.testing.assert_allclose(features, expected, atol=1e-3)


def test_a_clip_is_the_same_whatever_comes_with_it():
    """A clip alone is shared out among the threads, clips in a batch are not."""
    waves, floors, filters = make_clips(5), floor_powers(make_responses(5)), mel_filterbank(n_mels=MELS)
    run = jax.jit(lambda waves, floors: audio.analyse(waves, floors, filters, **sizes(n_frames=125)))
    together = run(waves, floors)
    for i in range(5):
        for whole, alone in zip(together, run(waves[i : i + 1], floors[i : i + 1]), strict=True):
            np.testing.assert_array_equal(whole[i], alone[0])


def test_silence_and_loud_clips_give_finite_features():
    waves = np.stack([np.zeros((N, 2), np.float32), make_clips(1)[0] * 1e4])
    floors, filters = floor_powers(make_responses(2)), mel_filterbank(n_mels=MELS)
    for given in audio.analyse(waves, floors, filters, **sizes()):
        assert np.all(np.isfinite(given))
    expected = clip_features(waves[0], floors[0], filters, **sizes())
    for given, silent in zip(audio.analyse(waves, floors, filters, **sizes()), expected, strict=True):
        np.testing.assert_allclose(given[0], silent, atol=1e-5)


@pytest.mark.parametrize("sources, taps, n", [(1, 256, N), (3, 200, N), (2, 512, 5000), (1, 1, 40)])
def test_rendering_adds_the_sources_and_keeps_to_the_peak(sources, taps, n):
    rng = np.random.default_rng(taps)
    mono = rng.standard_normal((2, sources, n)).astype(np.float32)
    mono[1] *= 1000.0
    hrir = (rng.standard_normal((2, sources, 2, taps)) / 100).astype(np.float32)
    floors, filters = floor_powers(make_responses(2)), mel_filterbank(n_mels=MELS)
    peak = 10.0
    waves, mel, features = audio.render(mono, hrir, peak, floors, filters, **sizes())
    for i, expected in enumerate(np.stack([render_sources(*pair) for pair in zip(mono, hrir, strict=True)])):
        loudest = np.abs(expected).max()
        assert (loudest > peak) == bool(i)
        np.testing.assert_allclose(waves[i], expected * min(1.0, peak / loudest), atol=3e-6 * min(loudest, peak))
    for given, expected in zip((mel, features), audio.analyse(waves, floors, filters, **sizes()), strict=True):
        np.testing.assert_array_equal(given, expected)


def test_other_sizes_take_the_forms_in_jax():
    assert audio.can_analyse(1024, 512, 64) and audio.can_render(512, 1024, 512, 64)
    for other in ((512, 256, 64), (1024, 513, 64), (1024, 512, 20)):
        assert not audio.can_analyse(*other)
    assert not audio.can_render(513, 1024, 512, 64)  # rooms
    waves, floors = make_clips(2), floor_powers(make_responses(2, 256))
    filters = mel_filterbank(n_fft=512, n_mels=20, n_bins=256)
    mel, features = analyse_clips(waves, floors, filters, n_fft=512, **sizes())
    expected = clip_features(waves[1], floors[1], filters, n_fft=512, **sizes())
    for given, one in zip((mel, features), expected, strict=True):
        np.testing.assert_allclose(given[1], one, atol=1e-4)
