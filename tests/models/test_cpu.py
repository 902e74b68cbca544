import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dualspec_jax.models import cpu, cpu_convolution, cpu_layers
from dualspec_jax.models.layers import Attention, Conv, Dense, GroupNorm


@pytest.fixture(autouse=True)
def _on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("these forms are for a CPU")


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def reference(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradients(fn, *args):
    """Return the gradients of a weighted sum of what fn returns."""
    out = jax.eval_shape(fn, *args)
    weights = normal(*out.shape, seed=9)
    found = jax.jit(jax.grad(lambda *a: jnp.sum(fn(*a) * weights), tuple(range(len(args)))))(*args)
    return [np.asarray(g) for g in found]


def assert_same(found, expected, limit):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) < limit * np.max(np.abs(b))


@pytest.mark.parametrize("shape", [(2, 4, 1, 3), (1, 8, 5, 6), (3, 16, 4, 8)])
def test_winograd_is_the_convolution(shape):
    x, kernel = normal(*shape), normal(3, 3, shape[-1], 7, seed=1)
    assert_same([cpu_convolution.winograd(x, kernel)], [reference(x, kernel)], 1e-5)
    assert_same(gradients(cpu_convolution.winograd, x, kernel), gradients(reference, x, kernel), 1e-5)


def test_gradients_of_convolutions_over_few_positions():
    x, kernel = normal(2, 6, 3, 64), normal(3, 3, 64, 72, seed=1)
    with cpu.long_runs():
        found = gradients(cpu_convolution.convolve, x, kernel)
        assert "custom_vjp" in str(jax.make_jaxpr(cpu_convolution.convolve)(x, kernel))
    assert_same(found, gradients(reference, x, kernel), 1e-5)


def flops(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def test_large_convolutions_take_half_the_multiplications_in_long_runs():
    large, small, odd = normal(2, 32, 16, 64), normal(2, 4, 2, 64), normal(2, 34, 16, 64)
    kernel = normal(3, 3, 64, 96, seed=1)
    direct = flops(lambda x: reference(x, kernel), large)
    assert flops(lambda x: cpu_convolution.convolve(x, kernel), large) == direct
    with cpu.long_runs():
        assert flops(lambda x: cpu_convolution.convolve(x, kernel), large) < 0.65 * direct
        for x in (small, odd, large.astype(jnp.bfloat16)):
            same = kernel.astype(x.dtype)
            np.testing.assert_array_equal(cpu_convolution.convolve(x, same), reference(x, same))
        with cpu.accelerator_forms():
            assert flops(lambda x: cpu_convolution.convolve(x, kernel), large) == direct


def test_other_devices_attend_as_jax_does():
    attention, x = Attention(2, 8), normal(2, 24, 16)
    params = attention.init(jax.random.key(0), x)
    with cpu.accelerator_forms():
        theirs = flops(lambda x: attention.apply(params, x), x)
    assert theirs != flops(lambda x: attention.apply(params, x), x)


def test_attention_is_that_of_jax():
    q, k, v = (normal(2, 24, 3, 8, seed=i) for i in range(3))
    assert_same([cpu_layers.self_attention(q, k, v)], [jax.nn.dot_product_attention(q, k, v)], 1e-5)
    assert_same(gradients(cpu_layers.self_attention, q, k, v), gradients(jax.nn.dot_product_attention, q, k, v), 1e-5)


def test_attention_keeps_its_precision_at_large_logits():
    q, k, v = (scale * normal(1, 16, 1, 8, seed=i) for i, scale in enumerate((100.0, 100.0, 1.0)))
    out = cpu_layers.self_attention(q, k, v)
    np.testing.assert_allclose(out, jax.nn.dot_product_attention(q, k, v), atol=1e-3)


def test_dense_and_pointwise_convolution_have_the_products_gradients():
    x, kernel, bias = normal(2, 3, 4, 8), normal(8, 5, seed=1), normal(5, seed=2)
    expected = gradients(lambda x, kernel, bias: x @ kernel + bias, x, kernel, bias)
    dense = lambda x, kernel, bias: Dense(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert_same(gradients(dense, x, kernel, bias), expected, 1e-5)
    pointwise = lambda x, kernel, bias: Conv(5, 1).apply({"params": {"kernel": kernel[None, None], "bias": bias}}, x)
    assert_same(gradients(pointwise, x, kernel, bias), expected, 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (3, 5, 8)])
def test_group_norm_is_that_of_flax(shape):
    x, scale, bias = 3.0 + normal(*shape), normal(8, seed=1), normal(8, seed=2)
    variables = lambda scale, bias: {"params": {"scale": scale, "bias": bias}}
    ours = lambda x, scale, bias: GroupNorm(4, epsilon=1e-5).apply(variables(scale, bias), x)
    theirs = lambda x, scale, bias: nn.GroupNorm(4, epsilon=1e-5).apply(variables(scale, bias), x)
    assert_same([ours(x, scale, bias)], [theirs(x, scale, bias)], 1e-5)
    assert_same(gradients(ours, x, scale, bias), gradients(theirs, x, scale, bias), 1e-4)
    initial = jax.tree.map(np.asarray, GroupNorm(4).init(jax.random.key(0), x))
    jax.tree.map(np.testing.assert_array_equal, initial, nn.GroupNorm(4).init(jax.random.key(0), x))


def test_gated_gelu_is_that_of_flax():
    x = 3.0 * normal(2, 5, 12)
    theirs = lambda x: x[..., :6] * nn.gelu(x[..., 6:], approximate=False)
    assert_same([cpu_layers.gated_gelu(x)], [theirs(x)], 1e-6)
    assert_same(gradients(cpu_layers.gated_gelu, x), gradients(theirs, x), 1e-6)


def test_global_norm_is_that_of_optax():
    tree = {"wide": normal(16, 3, 5), "odd": normal(7, 3, seed=1), "flat": normal(9, seed=2)}
    np.testing.assert_allclose(cpu_layers.global_norm(tree), optax.tree.norm(tree), rtol=1e-6)
