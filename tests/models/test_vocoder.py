import jax
import jax.numpy as jnp
import numpy as np
from drawn import draw_params

from dualspec_jax.models.vocoder import Vocoder

MODEL = Vocoder(channels=8, layers=2, hidden=16, input_mean=-5.0, input_std=2.5)


def inputs(frames=24):
    mel = jax.random.normal(jax.random.key(0), (2, frames, 12))
    return mel, jnp.exp(jax.random.normal(jax.random.key(1), (2, frames, 20)))


def test_an_untrained_network_is_near_the_level_spread_from_the_mel():
    mel, spread = inputs()
    params = MODEL.init(jax.random.key(2), mel, spread)
    params = jax.tree.map(lambda p: 0.1 * p, params)  # what it adds to the level, then, is small
    spec = MODEL.apply(params, mel, spread)
    assert spec.shape == spread.shape and spec.dtype == jnp.complex64
    assert float(jnp.mean(jnp.abs(jnp.log(jnp.abs(spec) / spread)))) < 0.2


def test_levels_scale_with_the_spread_and_silence_stays_silent():
    mel, spread = inputs()
    params = draw_params(MODEL, mel, spread)
    apply = jax.jit(MODEL.apply)
    np.testing.assert_allclose(apply(params, mel, 2.0 * spread), 2.0 * apply(params, mel, spread), rtol=1e-5)
    assert not np.any(apply(params, mel, 0.0 * spread))


def test_a_frame_sees_its_surroundings_only():
    """Convolutions of 7 frames: one at the input, one in each of two blocks, so 9 frames on either side."""
    mel, spread = inputs(40)
    params = draw_params(MODEL, mel, spread)
    apply = jax.jit(MODEL.apply)
    changed = np.any(np.asarray(apply(params, mel.at[:, 20].add(1.0), spread) != apply(params, mel, spread)), (0, 2))
    assert changed[11:30].all() and not changed[:11].any() and not changed[30:].any()
