import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from dualspec_jax.ops.stft import hann_window, istft, stft


def signals(n=8000):
    rng = np.random.default_rng(0)
    clicks = np.zeros(n)
    clicks[[3, 1000, 1003, n - 5]] = [1.0, -0.7, 0.5, 1.0]  # near both ends too: the padding matters there
    return np.stack([0.3 * rng.standard_normal(n), clicks], axis=-1).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 160), (512, 128), (256, 100)])
def test_stft_agrees_with_librosa(n_fft, hop):
    x = signals()
    n_frames = len(x) // hop
    ours = stft(x[None], n_fft=n_fft, hop_length=hop, n_frames=n_frames, n_bins=n_fft // 2)[0]
    for channel in range(2):
        theirs = librosa.stft(x[:, channel], n_fft=n_fft, hop_length=hop, center=True, pad_mode="constant").T
        np.testing.assert_allclose(ours[..., channel], theirs[:n_frames, :-1], atol=1e-4)


def test_frames_past_the_end_are_of_silence():
    spec = stft(signals(1600)[None], n_frames=30)
    assert spec.shape == (1, 30, 512, 2)
    np.testing.assert_allclose(spec[0, 14:], 0.0, atol=1e-6)  # frame 14 starts at sample 14 * 160 - 512 > 1600


def test_istft_inverts_stft():
    x = signals()
    n_frames = len(x) // 160 + 1
    spec = stft(x[None], n_frames=n_frames, n_bins=513)
    np.testing.assert_allclose(istft(spec, n_samples=len(x))[0], x, atol=1e-5)


def test_istft_without_nyquist_loses_only_nyquist():
    x = signals()
    kept = stft(x[None], n_frames=51, n_bins=513).at[:, :, 512].set(0.0)
    dropped = istft(stft(x[None], n_frames=51), n_samples=len(x))
    np.testing.assert_allclose(dropped, istft(kept, n_samples=len(x)), atol=1e-6)


def test_istft_pads_what_no_frame_covers():
    out = istft(jnp.ones((1, 4, 512, 1), jnp.complex64), n_samples=4000)
    assert out.shape == (1, 4000, 1)
    np.testing.assert_array_equal(out[0, 3 * 160 + 512 :], 0.0)
    assert np.all(np.isfinite(out))


def test_stft_is_linear_and_batched():
    x = signals()
    both = stft(np.stack([x, 2.0 * x]), n_frames=50)
    np.testing.assert_allclose(both[1], 2.0 * both[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both[0], stft(x[None], n_frames=50)[0], atol=1e-6)


def test_jit_equals_no_jit():
    x = signals(2400)[None]
    forward = lambda x: stft(x, n_frames=15)
    with jax.disable_jit():
        plain = forward(x), istft(forward(x), n_samples=2400)
    compiled = jax.jit(forward)(x), jax.jit(lambda s: istft(s, n_samples=2400))(forward(x))
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_gradient_is_the_adjoint():
    """<stft(x), y> = <x, stft*(y)>, the latter from the gradient of a linear function of x."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 1, 1600, 1)).astype(np.float32)
    weight = np.asarray(stft(y, n_frames=10))
    inner = lambda x: jnp.sum(jnp.real(stft(x, n_frames=10) * np.conj(weight)))
    gradient = jax.grad(inner)(x)
    np.testing.assert_allclose(jnp.sum(gradient * x), inner(x), rtol=1e-4)


def test_gradient_is_finite_at_silence():
    gradient = jax.grad(lambda x: jnp.sum(jnp.abs(stft(x, n_frames=10)) ** 2))(jnp.zeros((1, 1600, 1)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_window_is_periodic_hann():
    np.testing.assert_allclose(hann_window(8), 0.5 - 0.5 * np.cos(np.pi * np.arange(8) / 4), atol=1e-7)
