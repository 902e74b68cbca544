import jax
import jax.numpy as jnp
import numpy as np
from drawn import draw_params

from dualspec_jax.models.classifier import EventClassifier


def test_level_does_not_matter_but_content_does():
    model = EventClassifier(5, hidden=(8, 16))
    mel = jax.random.normal(jax.random.key(0), (2, 64, 32))
    apply, params = jax.jit(model.apply), draw_params(model, mel)
    logits, embedding = apply(params, mel)
    assert logits.shape == (2, 5) and embedding.shape == (2, 16)
    np.testing.assert_allclose(apply(params, mel - 3.0)[0], logits, atol=1e-3)
    assert float(jnp.max(jnp.abs(apply(params, mel[:, :, ::-1])[0] - logits))) > 1e-3


def test_dropout_acts_in_training_only():
    model = EventClassifier(5, hidden=(8, 8), dropout=0.5, frame_rate=25.0)
    mel = jax.random.normal(jax.random.key(0), (2, 64, 32))
    params = draw_params(model, mel)
    train = jax.jit(lambda key: model.apply(params, mel, train=True, rngs={"dropout": key})[0])
    run = lambda seed: train(jax.random.key(seed))
    assert float(jnp.max(jnp.abs(run(0) - run(1)))) > 1e-4
    assert jax.jit(model.apply)(params, mel)[0].shape == (2, 5)  # needs no key
