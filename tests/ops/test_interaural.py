import jax.numpy as jnp
import numpy as np

from dualspec_jax.ops.interaural import interaural_cues, interaural_statistics


def _spec(seed=0, frames=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, frames, 512)) + 1j * rng.normal(size=(1, frames, 512))


def _cues(left, right):
    spec = jnp.asarray(np.stack([left, right], axis=-1), jnp.complex64)
    return np.asarray(interaural_cues(interaural_statistics(spec)))[0]


def test_one_source_is_coherent_with_its_phase_and_level():
    source = _spec()
    cues = _cues(2.0 * source * np.exp(0.5j), source)
    np.testing.assert_allclose(cues[:, 0], np.cos(0.5), atol=1e-3)
    np.testing.assert_allclose(cues[:, 1], np.sin(0.5), atol=1e-3)
    np.testing.assert_allclose(cues[:, 2], 0.5 * np.log(2.0), atol=1e-3)
    assert cues[:, 3].max() == 0.0 and cues[:, 3].min() > -0.5


def test_swapping_the_ears_turns_phase_and_level_round():
    left, right = _spec(0), 0.5 * _spec(0) * np.exp(-1j) + 0.1 * _spec(1)
    there, back = _cues(left, right), _cues(right, left)
    np.testing.assert_allclose(back[:, [0, 3]], there[:, [0, 3]], atol=1e-4)
    np.testing.assert_allclose(back[:, [1, 2]], -there[:, [1, 2]], atol=1e-4)


def test_ears_that_share_nothing_are_incoherent():
    cues = _cues(_spec(0, 400), _spec(1, 400))
    assert np.hypot(cues[:, 0], cues[:, 1]).mean() < 0.1


def test_echoes_count_less_than_the_sound_before_them():
    direct, echo = _spec(0, 4), 0.7 * _spec(1, 16)
    left = np.concatenate([direct, echo], axis=1)
    right = np.concatenate([direct, 0.7 * _spec(2, 16)], axis=1)  # an echo without direction, after 4 clean frames
    coherence = np.hypot(*_cues(left, right)[:, :2].T).mean()
    plain = np.abs(np.sum(left * np.conj(right))) / np.sqrt(np.sum(np.abs(left) ** 2) * np.sum(np.abs(right) ** 2))
    assert coherence > plain + 0.1


def test_level_does_not_matter_and_silence_is_finite():
    source, other = _spec(0), _spec(1)
    np.testing.assert_allclose(_cues(1e-2 * source, 1e-2 * other), _cues(source, other), atol=1e-3)
    assert np.isfinite(_cues(0.0 * source, 0.0 * source)).all()
