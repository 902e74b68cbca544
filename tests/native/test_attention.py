import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax.models import cpu_layers
from dualspec_jax.native import attention, library

needs_compiler = pytest.mark.skipif(not library.available(), reason="needs a C++ compiler")


def arrays(*shape):
    return tuple(np.random.default_rng(i).standard_normal(shape, np.float32) for i in range(4))


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 32, 1, 16), (2, 96, 3, 48), (1, 544, 2, 32), (2, 160, 1, 128)], ids=str)
def test_agrees_with_jax(shape):
    q, k, v, gradient = arrays(*shape)
    out, back = jax.vjp(attention.attend, q, k, v)
    expected, expected_back = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    for given, wanted in zip((out, *back(gradient)), (expected, *expected_back(gradient)), strict=True):
        np.testing.assert_allclose(given, wanted, atol=2e-5 * np.std(wanted))


@pytest.mark.skipif(not library.has_bfloat16(), reason="needs a C++ compiler and a processor with AMX")
@pytest.mark.parametrize("shape", [(1, 32, 1, 16), (2, 96, 3, 48), (1, 544, 2, 32), (2, 160, 1, 128)], ids=str)
def test_rounded_agrees_to_the_rounding(shape):
    q, k, v, gradient = (np.asarray(jnp.asarray(a).astype(jnp.bfloat16), np.float32) for a in arrays(*shape))
    out, back = jax.vjp(lambda *a: attention.attend(*a, True), q, k, v)
    expected, expected_back = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    for given, wanted in zip((out, *back(gradient)), (expected, *expected_back(gradient)), strict=True):
        assert 0 < np.sqrt(np.mean((given - wanted) ** 2)) < 4e-3 * np.std(wanted)  # weights of 8 bits


@needs_compiler
def test_keeps_its_precision_at_large_logits():
    q, k, v, _ = arrays(1, 64, 1, 16)
    out = attention.attend(100 * q, 100 * k, v)
    np.testing.assert_allclose(out, jax.nn.dot_product_attention(100 * q, 100 * k, v), atol=1e-3)


def test_layers_use_it_where_it_fits(monkeypatch):
    monkeypatch.setattr(library, "alone", lambda: True)
    monkeypatch.setattr(attention.os, "cpu_count", lambda: 4)
    assert attention.can_attend(2, 64, 2, 32)
    for other in ((1, 64, 3, 32), (2, 48, 2, 32), (2, 64, 2, 24)):
        assert not attention.can_attend(*other)
    monkeypatch.setattr(attention, "attend", lambda q, k, v, rounded: "attend")
    q, k, v, _ = arrays(2, 64, 2, 32)
    assert cpu_layers.self_attention(q, k, v) == "attend"
    monkeypatch.setattr(library, "alone", lambda: False)
    assert cpu_layers.self_attention(q, k, v).shape == q.shape
