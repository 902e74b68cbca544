import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.ops.griffin_lim import griffin_lim, match_mel
from dualspec_jax.ops.mel import log_mel, mel_filterbank, mel_to_magnitude
from dualspec_jax.ops.stft import istft, stft

N = 9600
SIZE = {"n_samples": N}


def chirps():
    """Two clips, [2, N, 1]: a rising tone and a series of decaying tones. Both have a phase to be found."""
    t = np.arange(N) / 16000
    decay = np.exp(-8 * (t % 0.2)) * np.sin(2 * np.pi * 700 * t)
    return np.stack([np.sin(2 * np.pi * (300 * t + 1500 * t**2)), decay])[..., None].astype(np.float32)


@pytest.fixture(scope="module")
def magnitude():
    return jnp.abs(stft(chirps(), n_frames=N // 160)[..., 0])


def run(magnitude, keys, **options):
    return jax.jit(lambda m, k: griffin_lim(m, k, **SIZE, **options))(magnitude, keys)


def spectral_convergence(magnitude, spec):
    """Return | |STFT(iSTFT(spec))| - magnitude | / | magnitude | per clip: 0 where spec belongs to a waveform."""
    again = jnp.abs(stft(istft(spec[..., None], **SIZE), n_frames=N // 160)[..., 0])
    norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=(1, 2)))
    return np.asarray(norm(again - magnitude) / norm(magnitude))


def test_iterations_and_momentum_improve_convergence(magnitude):
    keys = jax.random.split(jax.random.key(0), 2)
    error = lambda **options: spectral_convergence(magnitude, run(magnitude, keys, **options))
    start, few = error(iters=0), error(iters=8, momentum=0.0)
    many, fast = error(iters=48, momentum=0.0), error(iters=48, momentum=0.99)
    assert np.all(few < 0.8 * start) and np.all(many < few) and np.all(fast < many)


def test_magnitude_is_kept(magnitude):
    spec = run(magnitude, jax.random.split(jax.random.key(0), 2), iters=2)
    np.testing.assert_allclose(jnp.abs(spec), magnitude, rtol=1e-4, atol=1e-5)


def test_each_sample_has_its_own_key(magnitude):
    keys = jax.random.split(jax.random.key(1), 2)
    both = run(magnitude, keys, iters=4)
    for i in range(2):
        single = run(magnitude[i : i + 1], keys[i : i + 1], iters=4)
        np.testing.assert_allclose(both[i], single[0], atol=1e-3 * float(magnitude.max()))
    swapped = run(magnitude, keys[::-1], iters=4)
    assert float(jnp.max(jnp.abs(swapped - both))) > 0.1 * float(magnitude.max())


def test_silence_stays_silent():
    spec = run(jnp.zeros((1, N // 160, 512)), jax.random.split(jax.random.key(0), 1), iters=3)
    np.testing.assert_array_equal(np.asarray(spec), 0.0)


@pytest.fixture(scope="module")
def mel():
    return log_mel(stft(chirps(), n_frames=N // 160), mel_filterbank())[..., 0]


def mel_error(mel, spec):
    """Return the mean distance, nepers, of the log-mel of the spectrogram's waveform from the one asked for."""
    again = stft(istft(spec[..., None], **SIZE), n_frames=N // 160)
    return float(jnp.mean(jnp.abs(log_mel(again, mel_filterbank())[..., 0] - mel)))


def matched(spec, mel, iters):
    return jax.jit(lambda s: match_mel(s, mel, mel_filterbank(), iters=iters, **SIZE))(spec)


def test_matching_the_mel_of_noise_ends_nearer_to_it_than_more_of_griffin_lim():
    bursts = np.random.default_rng(0).standard_normal((2, N)) * np.exp(-8 * (np.arange(N) / 16000 % 0.2))
    mel = log_mel(stft(bursts[..., None].astype(np.float32), n_frames=N // 160), mel_filterbank())[..., 0]
    keys = jax.random.split(jax.random.key(0), 2)
    magnitude = mel_to_magnitude(mel, mel_filterbank())
    few, many = (run(magnitude, keys, iters=n) for n in (12, 32))
    error = [mel_error(mel, matched(few, mel, n)) for n in (1, 4, 16)]
    assert error[2] < error[1] < error[0] and error[1] < 0.8 * mel_error(mel, many)


def test_matching_the_mel_of_tones_comes_nearer_step_by_step(mel):
    magnitude = mel_to_magnitude(mel, mel_filterbank())
    few = run(magnitude, jax.random.split(jax.random.key(0), 2), iters=12)
    error = [mel_error(mel, matched(few, mel, n)) for n in (0, 2, 16)]
    assert error[2] < error[1] < error[0]


def test_matching_leaves_what_fits(mel):
    spec = stft(chirps(), n_frames=N // 160)[..., 0]
    again = matched(spec, mel, 3)
    heard = jnp.abs(spec) > 1e-3 * float(jnp.abs(spec).max())
    np.testing.assert_allclose(again[heard], spec[heard], rtol=2e-2, atol=2e-2)


def test_matching_scales_every_band_to_its_level(mel):
    spec = stft(chirps(), n_frames=N // 160)[..., 0]
    louder = matched(0.5 * spec, mel, 0)
    heard = jnp.abs(spec) > 1e-2 * float(jnp.abs(spec).max())
    heard = heard.at[..., 0].set(False)  # no band sees DC, which is left alone
    np.testing.assert_allclose(jnp.abs(louder)[heard], jnp.abs(spec)[heard], rtol=2e-2)
    np.testing.assert_array_equal(louder[..., 0], 0.5 * spec[..., 0])


def test_matched_silence_is_silent():
    mel = jnp.full((1, N // 160, 64), np.log(1e-5))
    spec = matched(jnp.zeros((1, N // 160, 512), jnp.complex64), mel, 3)
    np.testing.assert_array_equal(np.asarray(spec), 0.0)
