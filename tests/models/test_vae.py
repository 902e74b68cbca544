import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_params

from dualspec_jax.models.vae import AutoencoderKL

MEL = {"in_channels": 2, "patch": (2, 2), "channels": (8, 8), "strides": ((2, 2),), "mid_attention": True}
STFT = {"in_channels": 4, "patch": (4, 8), "channels": (8, 8, 8), "strides": ((1, 2), (1, 2)), "mid_attention": False}
REST = {"layers_per_block": 1, "latent_channels": 3, "norm_groups": 4}


def make(fields, **more):
    c = fields["in_channels"]
    return AutoencoderKL(**fields, **REST, input_mean=(-5.0,) * c, input_std=(2.0,) * c, **more)


class Jitted:
    """The model's functions, compiled: op by op they take ten times as long."""

    def __init__(self, model):
        self.apply = jax.jit(model.apply)
        self.encode = jax.jit(lambda params, x: model.apply(params, x, method="encode"))
        self.decode = jax.jit(lambda params, z: model.apply(params, z, method="decode"))


@pytest.fixture(scope="module", params=[(MEL, 16), (STFT, 64)], ids=["mel", "stft"])
def built(request):
    fields, bands = request.param
    model = make(fields)
    x = -5.0 + 2.0 * jax.random.normal(jax.random.key(1), (2, 16, bands, fields["in_channels"]))
    params = draw_params(model, x, jax.random.key(2))
    return Jitted(model), params, x


def test_two_configs_of_one_module_share_a_latent_grid(built):
    model, params, x = built
    output, mu, logvar = model.apply(params, x, jax.random.key(3))
    assert output.shape == x.shape and output.dtype == jnp.float32
    assert mu.shape == logvar.shape == (2, 4, 4 if x.shape[-1] == 2 else 2, 3)


def test_call_decodes_a_posterior_sample(built):
    model, params, x = built
    key = jax.random.key(3)
    output, mu, logvar = model.apply(params, x, key)
    z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
    np.testing.assert_allclose(output, model.decode(params, z), rtol=1e-4, atol=1e-4)
    other = model.apply(params, x, jax.random.key(4))
    np.testing.assert_array_equal(other[1], mu)
    assert float(jnp.max(jnp.abs(other[0] - output))) > 1e-3


def test_encode_works_on_any_length(built):
    model, params, x = built
    mu, _ = model.encode(params, jnp.concatenate([x, x], axis=1))
    assert mu.shape[1] == 8


def test_log_variance_is_clipped(built):
    model, params, x = built
    for factor, limit in ((1e6, 20.0), (-1e6, -30.0)):
        bias = params["params"]["quant_conv"]["bias"]
        extreme = {
            "params": params["params"] | {"quant_conv": params["params"]["quant_conv"] | {"bias": bias + factor}}
        }
        _, logvar = model.encode(extreme, x)
        np.testing.assert_array_equal(logvar, limit)


def test_gradients_reach_every_parameter(built):
    model, params, x = built

    def loss(params):
        output, mu, logvar = model.apply(params, x, jax.random.key(3))
        return jnp.mean((output - x) ** 2) + jnp.mean(mu**2 + logvar**2)

    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.all(np.isfinite(g)), path
        if "to_k" not in str(path) or "bias" not in str(path):  # softmax is blind to a bias of the keys
            assert float(jnp.max(jnp.abs(g))) > 0, path


def test_input_statistics_are_undone_by_the_decoder():
    """Scaling the data and its statistics alike scales the output: the network in between sees the same numbers."""
    x = jax.random.normal(jax.random.key(1), (1, 8, 16, 2))
    plain = AutoencoderKL(**MEL, **REST, input_mean=(0.0, 0.0), input_std=(1.0, 1.0))
    scaled = AutoencoderKL(**MEL, **REST, input_mean=(-4.0, 3.0), input_std=(2.0, 5.0))
    key = jax.random.key(2)
    params = draw_params(plain, x, key)
    a = jax.jit(plain.apply)(params, x, key)[0]
    b = jax.jit(scaled.apply)(params, x * jnp.array([2.0, 5.0]) + jnp.array([-4.0, 3.0]), key)[0]
    np.testing.assert_allclose(b, a * jnp.array([2.0, 5.0]) + jnp.array([-4.0, 3.0]), atol=1e-3)


def test_bfloat16_compute_keeps_float32_ends():
    model = make(MEL, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 8, 16, 2))
    (output, mu, logvar), params = jax.eval_shape(lambda k: model.init_with_output(k, x, k), jax.random.key(0))
    assert output.dtype == mu.dtype == logvar.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
