import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.models import cpu, cpu_convolution
from dualspec_jax.models.layers import ResBlock, TransformerBlock
from dualspec_jax.native import convolution, library

needs_bfloat16 = pytest.mark.skipif(
    not library.has_bfloat16(), reason="needs a C++ compiler and a processor that multiplies in bfloat16"
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rounded(x):
    return jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)


def reference(x, kernel):
    if kernel.ndim == 2:
        return x @ kernel
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@needs_bfloat16
@pytest.mark.parametrize(
    "shape, outputs",
    [((7, 16), 16), ((2, 33, 48), 80), ((1100, 64), 144)]
    + [((1, 4, 1, 16), 16), ((3, 12, 5, 48), 32), ((4, 16, 2, 160), 48), ((2, 64, 16, 32), 80)],
    ids=str,
)
def test_is_the_product_of_rounded_operands(shape, outputs):
    x, gradient = normal(*shape), normal(*shape[:-1], outputs, seed=1)
    kernel = normal(*((3, 3) if len(shape) == 4 else ()), shape[-1], outputs, seed=2)
    out, back = jax.vjp(lambda *a: convolution.convolve(*a, True), x, kernel)
    expected, expected_back = jax.vjp(reference, rounded(x), rounded(kernel))
    for given, wanted in zip((out, *back(gradient)), (expected, *expected_back(rounded(gradient))), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-5 * np.std(wanted))


@needs_bfloat16
def test_layers_in_bfloat16_keep_float32_arrays(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # the tests have several virtual devices
    x, emb, context = normal(2, 16, 8, 32), normal(2, 48), normal(2, 5, 24)
    res, transformer = (
        lambda dtype: ResBlock(64, 16, dtype=dtype),
        lambda dtype: TransformerBlock(16, 16, dtype=dtype),
    )
    for make, rest in ((res, (emb,)), (transformer, (context, np.ones((2, 5), bool)))):
        params = make(jnp.float32).init(jax.random.key(0), x, *rest)
        apply = lambda dtype, make=make, params=params, rest=rest: jax.jit(make(dtype).apply)(params, x, *rest)
        exact, out = apply(jnp.float32), apply(jnp.bfloat16)
        assert out.dtype == jnp.float32
        assert 1e-4 < np.max(np.abs(out - exact)) / np.std(exact) < 0.1
        gradient = jax.jit(
            jax.grad(lambda p, make=make, rest=rest: jnp.sum(make(jnp.bfloat16).apply(p, x, *rest) ** 2))
        )
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient(params)))


def test_arrays_are_bfloat16_without_these_kernels(monkeypatch):
    monkeypatch.setattr(convolution, "can_round", lambda: True)
    assert cpu.carried(jnp.bfloat16) == jnp.float32 == cpu.carried(jnp.float32)
    with cpu.accelerator_forms():
        assert cpu.carried(jnp.bfloat16) == jnp.bfloat16
    monkeypatch.setattr(convolution, "can_round", lambda: False)
    assert cpu.carried(jnp.bfloat16) == jnp.bfloat16


def test_several_devices_do_without_them(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not convolution.can_round()


@needs_bfloat16
@pytest.mark.parametrize("registers", [False, True])
def test_winograds_convolutions_stay_where_only_vectors_round(monkeypatch, registers):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # the tests have several virtual devices
    monkeypatch.setattr(library, "has_matrix_registers", lambda: registers)
    program = lambda *shape: (
        jax.jit(lambda x, k: cpu_convolution.convolve(x, k, True)).lower(normal(*shape), normal(3, 3, 16, 16)).as_text()
    )
    assert ("dualspec_convolve_bfloat16" in program(1, 8, 4, 16)) == registers
    assert "dualspec_convolve_bfloat16" in program(1, 6, 4, 16)  # a number of frames that Winograd's does not take
