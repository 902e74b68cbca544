import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from dualspec_jax.ops.mel import log_mel, mel_filterbank, mel_to_magnitude, sum_ears
from dualspec_jax.ops.stft import stft


def noise(n=8000, channels=2, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal((1, n, channels))).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels", "fmin", "fmax"), [(16000, 1024, 64, 0, 8000), (22050, 512, 40, 50, 9000)]
)
def test_filterbank_agrees_with_librosa(rate, n_fft, n_mels, fmin, fmax):
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax).T
    ours = mel_filterbank(rate, n_fft, n_mels, fmin, fmax, n_bins=n_fft // 2 + 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # entries are about 0.01: 1e-4 would prove little
    assert ours.dtype == np.float32


def test_log_mel_agrees_with_librosa():
    x = noise()
    ours = log_mel(stft(x, n_frames=50), mel_filterbank())[0]
    for ear in range(2):
        magnitude = librosa.feature.melspectrogram(
            y=x[0, :, ear], sr=16000, n_fft=1024, hop_length=160, n_mels=64, power=1.0, pad_mode="constant"
        )
        np.testing.assert_allclose(ours[..., ear], np.log(np.maximum(magnitude, 1e-5)).T[:50], atol=1e-4)


def test_silence_is_the_floor_with_a_finite_gradient():
    silence = jnp.zeros((1, 1600, 2))
    mel = lambda x, floor: log_mel(stft(x, n_frames=10), mel_filterbank(), floor)
    np.testing.assert_allclose(mel(silence, 1e-3), np.log(1e-3), rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(mel(x, 1e-12)))(silence)))


def test_sum_ears_adds_energies():
    mel = np.log(np.float32([[3.0, 4.0], [1.0, 1.0], [2.0, 1e-5]]))[None, :, None]
    np.testing.assert_allclose(np.exp(sum_ears(mel))[0, :, 0], [5.0, 2**0.5, 2.0], rtol=1e-5)
    np.testing.assert_allclose(sum_ears(mel), sum_ears(mel[..., ::-1]), rtol=1e-6)


@pytest.mark.parametrize("start", ["transpose", "given"])
def test_mel_to_magnitude_reproduces_the_mel(start):
    spec = stft(noise(channels=1), n_frames=50)
    filters = mel_filterbank()
    mel = log_mel(spec, filters)[..., 0]
    initial = jnp.abs(spec[..., 0]) if start == "given" else None
    magnitude = mel_to_magnitude(mel, filters, iters=200, initial=initial)
    assert float(magnitude.min()) >= 0.0
    again = jnp.log(jnp.maximum(magnitude @ filters, 1e-5))
    assert float(jnp.mean(jnp.abs(again - mel))) < 0.01  # nepers


def test_mel_to_magnitude_keeps_a_start_that_fits():
    spec = jnp.abs(stft(noise(channels=1), n_frames=10))[..., 0]
    filters = mel_filterbank()
    magnitude = mel_to_magnitude(jnp.log(spec @ filters), filters, iters=5, initial=spec)
    covered = filters.sum(1) > 0
    np.testing.assert_allclose(magnitude[..., covered], spec[..., covered], rtol=1e-3, atol=1e-5)


def test_more_iterations_fit_better():
    filters = mel_filterbank()
    mel = log_mel(stft(noise(channels=1), n_frames=20), filters)[..., 0]
    error = lambda n: float(jnp.mean((mel_to_magnitude(mel, filters, iters=n) @ filters - jnp.exp(mel)) ** 2))
    assert error(30) < 0.5 * error(3) < 0.25 * error(0)
