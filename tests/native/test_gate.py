import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.models import cpu_layers
from dualspec_jax.native import gate, library

pytestmark = pytest.mark.skipif(not library.available(), reason="needs a C++ compiler")


def definition(x):
    value, by = jnp.split(x, 2, axis=-1)
    return value * jax.nn.gelu(by, approximate=False)


@pytest.mark.parametrize("shape", [(32,), (1, 1, 96), (2, 700, 64), (3, 5, 2, 1024)], ids=str)
def test_agrees_with_jax(shape):
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal(shape, np.float32)
    out, back = jax.vjp(gate.gated_gelu, x)
    expected, expected_back = jax.vjp(definition, x)
    gradient = rng.standard_normal(out.shape, np.float32)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(*back(gradient), *expected_back(gradient), rtol=1e-6, atol=2e-6)


def test_tails_and_what_is_no_number():
    gates = np.array([-np.inf, -1e20, -40, -13, -5, -0.0, 0, 5, 13, 1e20, np.nan, *range(5)], np.float32)
    out = gate.gated_gelu(np.concatenate([np.ones_like(gates), gates]))
    wanted = jax.nn.gelu(gates.astype(np.float64), approximate=False)
    assert not np.isfinite(out[0]) and np.isnan(out[10])  # -inf times 0, or nearly
    keep = np.isfinite(gates)
    np.testing.assert_allclose(out[keep], wanted[keep], rtol=1e-5, atol=1e-6)


def test_layers_take_the_kernel():
    x = jnp.ones((2, 3, 64))
    taken = str(jax.make_jaxpr(cpu_layers.gated_gelu)(x)).count("dualspec_gated_gelu")
    assert taken == library.alone()
    assert "dualspec" not in str(jax.make_jaxpr(cpu_layers.gated_gelu)(jnp.ones((2, 3, 48))))
