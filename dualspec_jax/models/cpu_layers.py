"""Products, norms and attention in forms that XLA runs faster on a CPU, forward or backward, than its own.

XLA's sums there go over an array slowly (1 to 3 GB/s), transposed operands double the time of a product, and what
several computations read is often computed again for each of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dualspec_jax.models.cpu import on_cpu
from dualspec_jax.native import attention, convolution, gate, library

_MIN_ROWS = 32  # of a product, for kernels that go by blocks of as many


@jax.custom_vjp
def _product(x: Float[Array, "N c"], kernel: Float[Array, "c d"]) -> Float[Array, "N d"]:
    return x @ kernel


def _product_backward(saved, gradient):
    # The barrier keeps XLA from writing the gradient transposed, which makes its product with x up to 3.4 times slower.
    x, kernel, gradient = jax.lax.optimization_barrier((*saved, gradient))
    of_x = jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
    return of_x, jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def product(x: Float[Array, "... c"], kernel: Float[Array, "c d"], rounded: bool = False) -> Float[Array, "... d"]:
    """Return x @ kernel, on a CPU by C++ or with a faster gradient of it, if `rounded` with operands in bfloat16."""
    kernels = rounded or (on_cpu(x.dtype) and library.alone())
    if kernels and x.size >= _MIN_ROWS * x.shape[-1] and convolution.fit(*kernel.shape):
        return convolution.convolve(x, kernel, rounded)
    if not on_cpu(x.dtype):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: Float[Array, "... c"], bias: Float[Array, "c"]) -> Float[Array, "... c"]:
    """Return x + bias, on a CPU with a faster gradient of the bias."""
    return _add_bias(x, bias) if on_cpu(x.dtype) else x + bias


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias


_add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, gradient: (gradient, column_sums(gradient)))


def column_sums(x: Float[Array, "... c"]) -> Float[Array, "c"]:
    """Return the sum over all axes but the last, as a product with ones: 2 to 6 times as fast as XLA's sum."""
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(jnp.ones(x.shape[:-1], x.dtype), x, ((rows, rows), ((), ())))


def global_norm(tree: Any) -> Float[Array, ""]:
    """Return the square root of the sum of squares over all leaves, on a CPU 4 times as fast as `optax.tree.norm`."""

    def squares(x):
        parts = 8  # squared and added in one loop, which XLA does well; its reductions are slow
        if not on_cpu(x.dtype) or x.ndim < 2 or x.size % (parts * x.shape[-1]):
            return jnp.sum(x * x)
        x = x.reshape(parts, -1, x.shape[-1])
        return jnp.sum(column_sums(sum(part * part for part in x)))

    return jnp.sqrt(sum(squares(x) for x in jax.tree.leaves(tree)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x: Float[Array, "B ... c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int, eps: float):
    """Return group norm of x, shaped like x, its sums as products with ones: with gradients up to 2.3 times as fast.

    The variance is E[x^2] - E[x]^2, as in Flax: where a group's mean is 10 (30) times its deviation, the result is off
    by up to 4e-4 (4e-3). That of x - mean took 1 to 4 % of a train step; no shipped network has a ratio over 2.8.

    Source: Wu & He 2018 (arXiv:1803.08494), equations 1 and 6.
    """
    return _group_norm(x, scale, bias, groups, eps)[0]


def _group_norm(x, scale, bias, groups, eps):
    mean, square = _group_means(x, groups), _group_means(x * x, groups)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps)
    factor = inverse * scale
    out = x * _per_example(factor, x) + _per_example(bias - mean * factor, x)
    return out, (x, scale, mean, inverse)


def _group_norm_backward(groups, eps, saved, gradient):
    x, scale, mean, inverse = saved
    of_bias = _example_sums(gradient)
    of_scale = (_example_sums(gradient * x) - mean * of_bias) * inverse
    along_mean, along_x = (_mean_of_group(y * scale, x, groups) for y in (of_bias, of_scale))
    factor = -inverse * inverse * along_x
    rest = -inverse * along_mean - factor * mean
    of_x = gradient * _per_example(inverse * scale, x) + x * _per_example(factor, x) + _per_example(rest, x)
    return of_x, of_scale.sum(axis=0), of_bias.sum(axis=0)


group_norm.defvjp(_group_norm, _group_norm_backward)


def _example_sums(x: Float[Array, "B ... c"]) -> Float[Array, "B c"]:
    rows = tuple(range(1, x.ndim - 1))
    return jax.lax.dot_general(jnp.ones(x.shape[:-1], x.dtype), x, ((rows, rows), ((0,), (0,))))


def _mean_of_group(sums: Float[Array, "B c"], x: Float[Array, "B ... c"], groups: int) -> Float[Array, "B c"]:
    """Return the mean over positions and the channels of a group, given each channel's sum, for each channel."""
    b, c = sums.shape
    means = sums.reshape(b, groups, -1).sum(axis=-1) * (b * groups / x.size)
    return jnp.repeat(means, c // groups, axis=1)


def _group_means(x: Float[Array, "B ... c"], groups: int) -> Float[Array, "B c"]:
    return _mean_of_group(_example_sums(x), x, groups)


def _per_example(y: Float[Array, "B c"], x: Float[Array, "B ... c"]) -> Float[Array, "B ... c"]:
    return y.reshape(y.shape[0], *(1,) * (x.ndim - 2), y.shape[1])


def gated_gelu(x: Float[Array, "... d"]) -> Float[Array, "... e"]:
    """Return the first half of the channels times GELU (the exact one) of the second.

    On a CPU by C++ or by erf, where `nn.gelu` takes erfc, and with a gradient that computes erf and one exponential
    once: with gradients twice as fast.
    Source: Shazeer 2020 (arXiv:2002.05202), GEGLU.
    """
    if on_cpu(x.dtype):
        if gate.fits(x.shape[-1]) and library.alone():
            return gate.gated_gelu(x)
        return _gated_gelu(x)
    value, by = jnp.split(x, 2, axis=-1)
    return value * jax.nn.gelu(by, approximate=False)


@jax.custom_vjp
def _gated_gelu(x):
    value, by = jnp.split(x, 2, axis=-1)
    return value * by * _normal_cdf(by)


def _gated_gelu_backward(x, gradient):
    value, by = jnp.split(x, 2, axis=-1)
    below, density = _normal_cdf(by), np.float32(1 / np.sqrt(2 * np.pi)) * jnp.exp(-0.5 * by * by)
    return (jnp.concatenate([gradient * by * below, gradient * value * (below + by * density)], axis=-1),)


_gated_gelu.defvjp(lambda x: (_gated_gelu(x), x), _gated_gelu_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def self_attention(
    q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], v: Float[Array, "B N H D"], rounded: bool = False
) -> Array:
    """Return softmax(q k^T / sqrt(D)) v, [B, N, H, D], by a kernel in C++, if `rounded` with operands in bfloat16.

    Where there is no such kernel, or a core would have no head, by products in float32.
    """
    return attention.attend(q, k, v, rounded) if attention.can_attend(*q.shape) else attention_by_products(q, k, v)


@jax.custom_vjp
def attention_by_products(q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], v: Float[Array, "B N H D"]) -> Array:
    """Return softmax(q k^T / sqrt(D)) v, [B, N, H, D].

    The sum of the weights comes out of the second product, as one more column, and divides its result: 2.2 times as
    fast as `jax.nn.dot_product_attention` on two cores (N 512 and 2 048), whose softmax goes over the weights once
    for the sum and once for the division. In the gradient the weights are always the second operand: as the first,
    transposed, they made their products half as fast. With it 2.2 to 3 times as fast.
    """
    return _attend(q, k, v)[0]


def _attend(q, k, v):
    b = q.shape[0]
    q, k, v = _by_head(q) * q.shape[-1] ** -0.5, _by_head(k), _by_head(v)
    logits = _batch_product(q, k, 2, 2)
    weights = jnp.exp(logits - _row_max(logits))
    out = _batch_product(weights, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1), 2, 1)
    scale = 1.0 / out[..., -1:]
    out = out[..., :-1] * scale
    return _by_example(out, b), (q, k, v, weights, scale, out)


def _row_max(x: Float[Array, "... N"], parts: int = 16) -> Float[Array, "... 1"]:
    """Return the maximum along the last axis, first of parts in one loop, as XLA does well: up to 8 times as fast."""
    width = x.shape[-1] // parts
    if width * parts == x.shape[-1]:
        x = functools.reduce(jnp.maximum, (x[..., i * width : (i + 1) * width] for i in range(parts)))
    return x.max(axis=-1, keepdims=True)


def _attend_backward(saved, gradient):
    q, k, v, weights, scale, out = saved
    b, head_dim = gradient.shape[0], gradient.shape[-1]
    gradient = _by_head(gradient) * scale
    from_sum = jnp.sum(gradient * out, axis=-1, keepdims=True)
    # (gradient v^T - from_sum), the subtraction as one more column.
    both = jnp.concatenate([gradient, from_sum], axis=-1), jnp.concatenate([v, -jnp.ones_like(v[..., :1])], axis=-1)
    of_logits = weights * _batch_product(*both, 2, 2)
    of_q = _batch_product(of_logits, k, 2, 1) * head_dim**-0.5
    of_k, of_v = _transposed_product(of_logits, q), _transposed_product(weights, gradient)
    return tuple(_by_example(x, b) for x in (of_q, of_k, of_v))


attention_by_products.defvjp(_attend, _attend_backward)


def _by_head(x: Float[Array, "B N H D"]) -> Float[Array, "BH N D"]:
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _by_example(x: Float[Array, "BH N D"], b: int) -> Float[Array, "B N H D"]:
    return x.reshape(b, -1, *x.shape[1:]).transpose(0, 2, 1, 3)


def _batch_product(x: Float[Array, "H N D"], y: Array, i: int, j: int) -> Array:
    return jax.lax.dot_general(x, y, (((i,), (j,)), ((0,), (0,))))


def _transposed_product(x: Float[Array, "H N M"], y: Float[Array, "H N D"]) -> Float[Array, "H M D"]:
    """Return x^T y as (y^T x)^T; the barriers keep XLA from turning that around."""
    y = jax.lax.optimization_barrier(y.swapaxes(1, 2))
    return jax.lax.optimization_barrier(_batch_product(y, x, 2, 1)).swapaxes(1, 2)
