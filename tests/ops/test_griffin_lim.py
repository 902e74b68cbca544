import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.ops.griffin_lim import griffin_lim
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
