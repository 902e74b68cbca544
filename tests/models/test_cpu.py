import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.models import cpu
from dualspec_jax.models.layers import Attention, Conv, Dense


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
    assert_same([cpu.winograd(x, kernel)], [reference(x, kernel)], 1e-5)
    assert_same(gradients(cpu.winograd, x, kernel), gradients(reference, x, kernel), 1e-5)


def flops(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def test_large_convolutions_take_half_the_multiplications_in_long_runs():
    large, small, odd = normal(2, 32, 16, 64), normal(2, 4, 2, 64), normal(2, 34, 16, 64)
    kernel = normal(3, 3, 64, 96, seed=1)
    direct = flops(lambda x: reference(x, kernel), large)
    assert flops(lambda x: cpu.convolve(x, kernel), large) == direct
    with cpu.long_runs():
        assert flops(lambda x: cpu.convolve(x, kernel), large) < 0.65 * direct
        for x in (small, odd, large.astype(jnp.bfloat16)):
            same = kernel.astype(x.dtype)
            np.testing.assert_array_equal(cpu.convolve(x, same), reference(x, same))
        with cpu.accelerator_forms():
            assert flops(lambda x: cpu.convolve(x, kernel), large) == direct


def test_other_devices_attend_as_jax_does():
    attention, x = Attention(2, 8), normal(2, 24, 16)
    params = attention.init(jax.random.key(0), x)
    with cpu.accelerator_forms():
        theirs = flops(lambda x: attention.apply(params, x), x)
    assert theirs != flops(lambda x: attention.apply(params, x), x)


def test_attention_is_that_of_jax():
    q, k, v = (normal(2, 24, 3, 8, seed=i) for i in range(3))
    assert_same([cpu.self_attention(q, k, v)], [jax.nn.dot_product_attention(q, k, v)], 1e-5)
    assert_same(gradients(cpu.self_attention, q, k, v), gradients(jax.nn.dot_product_attention, q, k, v), 1e-5)


def test_attention_keeps_its_precision_at_large_logits():
    q, k, v = (scale * normal(1, 16, 1, 8, seed=i) for i, scale in enumerate((100.0, 100.0, 1.0)))
    out = cpu.self_attention(q, k, v)
    np.testing.assert_allclose(out, jax.nn.dot_product_attention(q, k, v), atol=1e-3)


def test_a_precision_that_is_asked_for_is_kept():
    product = lambda **options: lambda x, y: cpu.dot_general(x, y, (((1,), (0,)), ((), ())), **options)
    x, kernel = normal(3, 4), normal(4, 5)
    text = str(jax.make_jaxpr(product(precision=jax.lax.Precision.HIGHEST))(x, kernel))
    assert "HIGHEST" in text
    assert "custom_vjp" not in text
    assert "custom_vjp" in str(jax.make_jaxpr(product(precision=None))(x, kernel))


def test_dense_and_pointwise_convolution_have_the_products_gradients():
    x, kernel, bias = normal(2, 3, 4, 8), normal(8, 5, seed=1), normal(5, seed=2)
    expected = gradients(lambda x, kernel, bias: x @ kernel + bias, x, kernel, bias)
    dense = lambda x, kernel, bias: Dense(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert_same(gradients(dense, x, kernel, bias), expected, 1e-5)
    pointwise = lambda x, kernel, bias: Conv(5, 1).apply({"params": {"kernel": kernel[None, None], "bias": bias}}, x)
    assert_same(gradients(pointwise, x, kernel, bias), expected, 1e-5)
