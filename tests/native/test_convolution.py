import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.models import cpu, cpu_convolution, cpu_layers
from dualspec_jax.native import convolution, library

needs_compiler = pytest.mark.skipif(not convolution.library.available(), reason="needs a C++ compiler")


def arrays(batch, frames, bins, channels, outputs):
    rng = np.random.default_rng(bins)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    kernel = normal(3, 3, channels, outputs) / np.float32(np.sqrt(9 * channels))
    return normal(batch, frames, bins, channels), kernel, normal(batch, frames, bins, outputs)


@needs_compiler
@pytest.mark.parametrize(
    "sizes",
    [(1, 4, 1, 16, 16), (3, 12, 5, 48, 32), (2, 16, 2, 96, 304), (19, 8, 4, 416, 144)]  # in parts
    + [(2, 28, 4, 16, 32), (3, 44, 12, 32, 80), (2, 64, 8, 16, 144), (3, 128, 16, 96, 96)],  # by tiles
    ids=str,
)
def test_convolution_and_gradients_agree_with_jax(sizes):
    x, kernel, gradient = arrays(*sizes)
    out, back = jax.vjp(convolution.convolve, x, kernel)
    expected, expected_back = jax.vjp(cpu_convolution._direct, x, kernel)
    for given, wanted in zip((out, *back(gradient)), (expected, *expected_back(gradient)), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-4 * np.std(wanted))


@needs_compiler
@pytest.mark.parametrize("sizes", [(3, 4, 4, 96, 96), (3, 64, 8, 32, 32)], ids=["in parts", "by tiles"])
def test_an_example_is_the_same_whatever_comes_with_it(sizes):
    x, kernel, _ = arrays(*sizes)
    run = jax.jit(convolution.convolve)
    for i in range(3):
        np.testing.assert_array_equal(run(x, kernel)[i], run(x[i : i + 1], kernel)[0])


@needs_compiler
def test_layers_use_it_where_it_fits(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # the tests have several virtual devices
    assert convolution.can_convolve(8, 32, 16)
    for other in ((6, 32, 16), (8, 24, 16), (8, 32, 8)):
        assert not convolution.can_convolve(*other)
    x, kernel, _ = arrays(1, 8, 4, 32, 16)
    program = lambda: jax.jit(lambda x, k: cpu_convolution.convolve(x, k)).lower(x, kernel).as_text()
    assert "dualspec_convolve" in program()
    with cpu.accelerator_forms():
        assert "dualspec_convolve" not in program()


def test_several_devices_take_the_forms_in_jax(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not library.alone()


@needs_compiler
@pytest.mark.parametrize("rows", [(32,), (2, 50), (3, 7, 30)], ids=str)
@pytest.mark.parametrize("channels, outputs", [(48, 16), (16, 272), (528, 80)], ids=str)
def test_products_agree_with_jax(rows, channels, outputs):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    x, kernel, gradient = normal(*rows, channels), normal(channels, outputs), normal(*rows, outputs)
    out, back = jax.vjp(convolution.convolve, x, kernel)
    expected, expected_back = jax.vjp(jnp.matmul, x, kernel)
    for given, wanted in zip((out, *back(gradient)), (expected, *expected_back(gradient)), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-5 * np.std(wanted))


@needs_compiler
def test_products_run_beside_others_and_in_loops():
    """The kernel hands its work to other threads and returns: what needs the result must still wait for it."""
    x = np.random.default_rng(0).standard_normal((256, 64), np.float32)
    kernels = np.random.default_rng(1).standard_normal((20, 64, 64), np.float32) / 8

    def run(product):
        step = lambda x, kernel: (jnp.tanh(product(x, kernel) - product(x, kernel[::-1])), None)
        return jax.jit(lambda x: jax.lax.scan(step, x, kernels)[0])(x)

    np.testing.assert_allclose(run(convolution.convolve), run(jnp.matmul), atol=1e-4)


def test_dense_layers_use_products_where_they_fit(monkeypatch):
    monkeypatch.setattr(convolution, "convolve", lambda x, kernel, rounded: "kernel")
    monkeypatch.setattr(library, "alone", lambda: True)
    ones = lambda *shape: np.ones(shape, np.float32)
    assert cpu_layers.product(ones(2, 16, 48), ones(48, 32)) == "kernel"
    for x, kernel in ((ones(31, 48), ones(48, 32)), (ones(32, 40), ones(40, 32)), (ones(32, 48), ones(48, 24))):
        np.testing.assert_allclose(cpu_layers.product(x, kernel), x @ kernel)
    monkeypatch.setattr(library, "alone", lambda: False)
    np.testing.assert_allclose(cpu_layers.product(ones(32, 48), ones(48, 32)), 48 * ones(32, 32))
