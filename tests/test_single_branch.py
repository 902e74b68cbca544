import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from dualspec_jax import metrics
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.single_branch import branch_of
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.scene import render
from dualspec_jax.stages import make_synthesis


def config(mel_weight, stft_weight):
    c = tiny_config()
    c.sample.griffin_lim_iters = 8
    c.diffusion.update(mel_weight=mel_weight, stft_weight=stft_weight)
    return c


def test_a_weight_of_zero_is_an_absent_branch():
    assert branch_of(config(1.0, 0.5)) is None
    assert branch_of(config(1.0, 0.0)) == "mel" and branch_of(config(0.0, 1.0)) == "stft"
    with pytest.raises(ValueError, match="at least one branch"):
        branch_of(config(0.0, 0.0))


def test_each_branch_alone_makes_its_own_sound():
    """The other spectrogram is garbage; the Mel branch keeps levels and loses times, the STFT branch keeps both."""
    c = config(1.0, 0.0)
    a = c.audio
    size = {name: a[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    noise = 0.1 * np.random.default_rng(0).standard_normal(a.n_samples).astype(np.float32)
    ears = render(noise, 60.0, spherical_head())
    spec = stft(ears[None], **size)
    mel = log_mel(spec, mel_filterbank(), a.mel_floor)
    features = spatial_features(spec)
    keys = jax.random.split(jax.random.key(0), 1)
    from_mel = np.asarray(jax.jit(make_synthesis(c, "griffin_lim"))({}, mel, jnp.full_like(features, 9.0), keys))[0]
    stft_only = make_synthesis(config(0.0, 1.0), "griffin_lim")
    from_stft = np.asarray(jax.jit(stft_only)({}, jnp.full_like(mel, 9.0), features, keys))[0]
    assert from_mel.shape == from_stft.shape == ears.shape
    assert metrics.ild_db(from_mel) == pytest.approx(metrics.ild_db(ears), abs=1.0)
    assert metrics.ild_db(from_stft) == pytest.approx(metrics.ild_db(ears), abs=1.0)
    assert metrics.itd_us(from_stft) == pytest.approx(metrics.itd_us(ears), abs=40.0)
    assert abs(metrics.itd_us(from_mel) - metrics.itd_us(ears)) > 100.0
