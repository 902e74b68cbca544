import numpy as np
import pytest

from dualspec_jax.config import default
from dualspec_jax.native import audio as native
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.render import PEAK, HrirBank, make_bank_renderer, make_renderer
from dualspec_jax.spatial.scene import render

N = 10240


@pytest.fixture(params=[True, False], ids=["kernels", "jax"], autouse=True)
def kernels(request, monkeypatch):
    """Render by the kernels in C++, where there is a compiler, and by the forms in JAX."""
    if not request.param:
        monkeypatch.setattr(native, "can_analyse", lambda *sizes: False)
    make_renderer.cache_clear()
    yield
    make_renderer.cache_clear()


def small_audio():
    audio = default().audio
    audio.n_samples, audio.n_frames = N, N // 160
    return audio


def test_sources_add_up_and_loud_scenes_are_scaled_down():
    head, rng = spherical_head(), np.random.default_rng(0)
    mono = (0.1 * rng.standard_normal((2, 2, N))).astype(np.float32)
    mono[1] *= 20
    azimuths = np.array([[30.0, 200.0], [90.0, 270.0]])
    hrir = np.stack([head.at(a) for a in azimuths])
    wave, mel, features = make_renderer(small_audio().to_json())(mono, hrir, head.spectrum(azimuths[:, 0]))
    expected = [
        sum(render(m, a, head) for m, a in zip(*pair, strict=True)) for pair in zip(mono, azimuths, strict=True)
    ]
    np.testing.assert_allclose(wave[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(np.abs(wave[1]).max(), PEAK, rtol=1e-5)
    np.testing.assert_allclose(wave[1], expected[1] * PEAK / np.abs(expected[1]).max(), atol=1e-4)
    spec = stft(np.asarray(wave), n_frames=N // 160)
    np.testing.assert_allclose(mel, log_mel(spec, mel_filterbank()), atol=1e-3)
    expected = spatial_features(spec, floor_response=head.spectrum(azimuths[:, 0]))
    np.testing.assert_allclose(features, expected, atol=1e-3)


def test_bank_takes_the_nearest_direction():
    head, rng = spherical_head(), np.random.default_rng(1)
    bank = HrirBank(head, 1024, 512)
    mono = (0.1 * rng.standard_normal((3, N))).astype(np.float32)
    wave, _, _ = make_bank_renderer(bank, small_audio())(mono, np.float32([359.9, 100.2, 45.5]))
    for i, azimuth in enumerate((0.0, 100.0, 45.5)):
        np.testing.assert_allclose(wave[i], render(mono[i], azimuth, head), atol=1e-5)
