import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_params

from dualspec_jax.models import layers


def build(module, *args):
    """Return (compiled apply, params)."""
    return jax.jit(module.apply), draw_params(module, *args)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (4, 8), (1, 4)])
def test_depth_to_space_inverts_space_to_depth(patch):
    x = normal(2, 8, 16, 3)
    folded = layers.space_to_depth(x, patch)
    assert folded.shape == (2, 8 // patch[0], 16 // patch[1], 3 * patch[0] * patch[1])
    np.testing.assert_array_equal(layers.depth_to_space(folded, patch), x)


def test_space_to_depth_keeps_a_patch_together():
    x = jnp.arange(4 * 4).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.space_to_depth(x, (2, 2))[0, 0, 1], [2, 3, 6, 7])


def test_timestep_embedding_is_cos_and_sin():
    e = layers.timestep_embedding(jnp.array([0.0, 3.0]), 8)
    np.testing.assert_array_equal(e[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(e[1, [0, 1, 4, 5]], [np.cos(3), np.cos(0.3), np.sin(3), np.sin(0.3)], atol=1e-6)


@pytest.mark.parametrize("channels", [8, 12])
def test_res_block_uses_its_embedding(channels):
    block, x = layers.ResBlock(channels, groups=4), normal(2, 4, 6, 8)
    emb = normal(2, 5, seed=1)
    apply, params = build(block, x, emb)
    out = apply(params, x, emb)
    assert out.shape == (2, 4, 6, channels)
    assert float(jnp.max(jnp.abs(out - apply(params, x, emb + 1.0)))) > 1e-3
    assert ("conv_shortcut" in params["params"]) == (channels != 8)


def test_masked_context_has_no_influence_and_no_gradient():
    attention = layers.Attention(num_heads=2, head_dim=4)
    x, context = normal(2, 5, 8), normal(2, 6, 7, seed=1)
    mask = jnp.arange(6) < jnp.array([[3], [5]])
    apply, params = build(attention, x, context, mask)
    out = apply(params, x, context, mask)
    junk = jnp.where(mask[..., None], context, 100.0)
    np.testing.assert_array_equal(out, apply(params, x, junk, mask))
    gradient = jax.grad(lambda c: jnp.sum(apply(params, x, c, mask) ** 2))(context)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert np.all(np.abs(gradient[mask]).sum(-1) > 0)
    np.testing.assert_allclose(out[0], apply(params, x[:1], context[:1, :3])[0], atol=1e-5)


def test_attention_agrees_with_its_formula():
    attention = layers.Attention(num_heads=1, head_dim=4, use_bias=True)
    x = normal(1, 5, 8)
    apply, params = build(attention, x)
    dense = lambda name, y: np.asarray(y @ params["params"][name]["kernel"] + params["params"][name]["bias"])
    q, k, v = (dense(name, x[0]) for name in ("to_q", "to_k", "to_v"))
    score = np.exp(q @ k.T / 2.0)  # sqrt(head_dim) = 2
    expected = dense("to_out", score / score.sum(1, keepdims=True) @ v)
    np.testing.assert_allclose(apply(params, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 1)])
def test_downsample_and_upsample_are_inverse_in_shape(stride, asymmetric):
    x = normal(1, 8, 16, 3)
    small, _ = jax.eval_shape(layers.Downsample(4, stride, asymmetric).init_with_output, jax.random.key(0), x)
    assert small.shape == (1, 8 // stride[0], 16 // stride[1], 4)
    large, _ = jax.eval_shape(layers.Upsample(3, stride).init_with_output, jax.random.key(0), small)
    assert large.shape == x.shape


def test_transformer_block_ignores_masked_tokens():
    block = layers.TransformerBlock(head_dim=4, groups=4)
    x, context, mask = normal(1, 2, 3, 8), normal(1, 4, 5, seed=1), jnp.array([[True, True, False, False]])
    apply, params = build(block, x, context, mask)
    out = apply(params, x, context, mask)
    assert out.shape == x.shape
    np.testing.assert_array_equal(out, apply(params, x, context.at[:, 2:].set(9.0), mask))
    assert float(jnp.max(jnp.abs(out - apply(params, x, context.at[:, 0].set(9.0), mask)))) > 1e-3


def test_spatial_attention_keeps_the_grid():
    init = layers.SpatialAttention(groups=4).init_with_output
    out, _ = jax.eval_shape(init, jax.random.key(0), normal(2, 3, 5, 8))
    assert out.shape == (2, 3, 5, 8)


def test_compute_dtype_is_an_argument():
    block = layers.ResBlock(8, groups=4, dtype=jnp.bfloat16)
    out, params = jax.eval_shape(block.init_with_output, jax.random.key(0), normal(1, 4, 4, 8))
    assert out.dtype == jnp.float32  # the shortcut is the float32 input
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
