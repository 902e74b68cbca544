import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_params

from dualspec_jax import networks
from dualspec_jax.config import default
from dualspec_jax.models.event_network import EventNetwork, level_free, log_agreement


def test_rows_of_frequency_matter_and_a_shift_in_time_hardly():
    """Statistics over time, of each row: away from the ends a sound may come earlier or later."""
    latent = jnp.zeros((1, 64, 16, 4)).at[:, 20:30].set(jax.random.normal(jax.random.key(0), (1, 10, 16, 4)))
    network = EventNetwork(5, (8, 8), hidden=8, norm_groups=4)
    params = draw_params(network, latent)
    logits = network.apply(params, latent)
    assert logits.shape == (1, 5)
    later = network.apply(params, jnp.roll(latent, 8, axis=1))
    upside_down = network.apply(params, latent[:, :, ::-1])
    assert jnp.abs(later - logits).max() < 1e-4 < 1e-2 < jnp.abs(upside_down - logits).max()


def test_dropout_acts_in_training_only():
    latent = jax.random.normal(jax.random.key(0), (2, 16, 8, 4))
    network = EventNetwork(5, (8,), hidden=8, norm_groups=4, dropout=0.5)
    params = draw_params(network, latent)
    train = [network.apply(params, latent, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(*train)


def test_agreement_is_the_probability_of_the_same_event_and_sure_where_none_is_named():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]] * 3))
    events = jnp.log(jnp.array([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]) + 1e-12)
    np.testing.assert_allclose(jnp.exp(log_agreement(logits, events)), [0.7, 0.45, 1.0], atol=1e-5)


@pytest.mark.parametrize("name", ["event_guide", "listener"])
def test_a_text_encoder_without_events_is_refused(name):
    with pytest.raises(ValueError, match=f"config.text.event_codes = 0: task {name} needs"):
        getattr(networks, f"make_{name}")(default())


def test_the_listener_sees_no_level_and_hears_short_sounds_by_their_peak():
    mel = jax.random.normal(jax.random.key(0), (2, 32, 16)) * 4.0
    picture = level_free(mel)
    assert picture.shape == (2, 32, 16, 1) and picture.max() == pytest.approx(1.5) and picture.min() >= -1.5
    np.testing.assert_allclose(level_free(mel - 3.0), picture, atol=1e-5)
    short = jnp.zeros((1, 512, 16, 1)).at[:, 100].set(1.0)
    change = {}
    for peaks in (False, True):
        network = EventNetwork(5, (8,), hidden=8, norm_groups=4, halve_first=True, peaks=peaks)
        params = draw_params(network, short)
        assert params["params"]["hidden"]["kernel"].shape[0] == 8 * 8 * (2 + peaks)
        outputs = [network.apply(params, x) for x in (short, 0.0 * short)]
        change[peaks] = float(jnp.abs(outputs[0] - outputs[1]).max())
    assert change[True] > change[False]
