import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.ops.analysis import clip_features, map_clips
from dualspec_jax.ops.binaural import floor_powers, spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft

N = 6400
SIZES = {
    "default": {},
    "short": {"n_fft": 256, "hop_length": 100, "average_frames": 3},
    "one_frame": {"average_frames": 1, "mel_floor": 1e-2, "stft_floor": 1e-2},
    "whole_hops": {"n_fft": 512, "hop_length": 128, "average_frames": 8},
}


def ears(n=N, seed=0):
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.standard_normal((n, 2)) @ [[1.0, 0.5], [0.0, 0.3]]
    return (x * (np.arange(n)[:, None] > n // 3)).astype(np.float32)  # with silence: the floors matter there


def response(n_bins, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((1, n_bins, 2)) + 1j * rng.standard_normal((1, n_bins, 2))).astype(np.complex64)


def reference(x, h, filters, *, n_fft, hop_length, n_frames, mel_floor, stft_floor, average_frames):
    spec = stft(x[None], n_fft=n_fft, hop_length=hop_length, n_frames=n_frames, n_bins=len(filters))
    features = spatial_features(spec, floor=stft_floor, average_frames=average_frames, floor_response=h)
    return log_mel(spec, filters, mel_floor)[0], features[0]


def case(name, n_frames):
    sizes = {"n_fft": 1024, "hop_length": 160, "mel_floor": 1e-5, "stft_floor": 1e-3, "average_frames": 4}
    sizes |= SIZES[name] | {"n_frames": n_frames}
    n_bins = sizes["n_fft"] // 2
    return sizes, mel_filterbank(n_fft=sizes["n_fft"], n_mels=32, n_bins=n_bins), response(n_bins)


@pytest.mark.parametrize("n_frames", [20, 70], ids=["cut", "past_the_end"])
@pytest.mark.parametrize("name", list(SIZES))
def test_agrees_with_the_readable_definition(name, n_frames):
    sizes, filters, h = case(name, n_frames)
    floors = floor_powers(h, sizes["stft_floor"])[0]
    mel, features = clip_features(ears(), floors, filters, **sizes)
    expected_mel, expected = reference(ears(), h, filters, **sizes)
    np.testing.assert_allclose(mel, expected_mel, atol=1e-4)  # float32 sums in another order
    np.testing.assert_allclose(features[..., :2], expected[..., :2], atol=1e-3)
    np.testing.assert_allclose(features[..., 2:], expected[..., 2:], atol=1e-3)


def test_silence_takes_its_own_way_to_the_same_result():
    sizes, filters, h = case("default", 12)
    floors = floor_powers(h)[0]
    silent = clip_features(np.zeros((N, 2), np.float32), floors, filters, **sizes)
    for given, expected in zip(silent, reference(np.zeros((N, 2), np.float32), h, filters, **sizes), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_gradient_is_that_of_the_definition():
    sizes, filters, h = case("default", 12)
    floors = floor_powers(h)[0]
    weights = [
        np.random.default_rng(i).standard_normal((12, *s)).astype(np.float32) for i, s in ((1, (32, 2)), (2, (512, 4)))
    ]
    total = lambda out: sum(jnp.vdot(w, x) for w, x in zip(weights, out, strict=True))
    given = jax.grad(lambda x: total(clip_features(x, floors, filters, **sizes)))(ears())
    expected = jax.grad(lambda x: total(reference(x, h, filters, **sizes)))(ears())
    np.testing.assert_allclose(given, expected, atol=1e-3 * np.abs(expected).max())
    silence = jax.grad(lambda x: total(clip_features(x, floors, filters, **sizes)))(jnp.zeros((N, 2)))
    assert np.all(np.isfinite(silence))


def test_a_clip_is_the_same_whatever_comes_with_it():
    sizes, filters, h = case("default", 20)
    floors = np.asarray(floor_powers(h))
    run = jax.jit(lambda x: map_clips(lambda x, f: clip_features(x, f, filters, **sizes), x, floors.repeat(len(x), 0)))
    clips = np.stack([ears(seed=0), np.zeros((N, 2), np.float32), ears(seed=1)])
    together = run(clips)
    for i in range(len(clips)):
        for a, b in zip(together, run(clips[i : i + 1]), strict=True):
            np.testing.assert_array_equal(a[i], b[0])


def test_all_at_once_equals_one_by_one():
    """The way of an accelerator, `jax.vmap`, against that of a CPU."""
    sizes, filters, h = case("short", 20)
    one = lambda x: clip_features(x, floor_powers(h)[0], filters, **sizes)
    clips = np.stack([ears(seed=0), np.zeros((N, 2), np.float32)])
    for a, b in zip(jax.vmap(one)(clips), map_clips(one, clips), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
