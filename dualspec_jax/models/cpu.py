"""Forms of convolution, attention and product that XLA runs faster on a CPU; elsewhere its own are the better ones.

What is traced on a CPU uses them, unless in `accelerator_forms`; Winograd's convolutions in `long_runs` only.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Four outputs of a filter of three taps from six products: output @ ((taps @ kernel) * (tile @ input)).
_TILE = 4
_INPUT = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    + [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
    np.float32,
)
_TAPS = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
    + [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    np.float32,
)
_OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    np.float32,
)
# What Winograd's needs to be the faster one: channels on both sides, and positions of the batch.
_MIN_CHANNELS, _MIN_POSITIONS = 64, 256

# 0: the forms of accelerators, 1: those of a CPU that compile as fast, 2: all.
_level = contextvars.ContextVar("level", default=1)


@contextlib.contextmanager
def _at(level: int) -> Iterator[None]:
    token = _level.set(level)
    try:
        yield
    finally:
        _level.reset(token)


def accelerator_forms() -> contextlib.AbstractContextManager[None]:
    """Have what is traced inside use the forms of other devices, also on a CPU: to count their work and memory."""
    return _at(0)


def long_runs() -> contextlib.AbstractContextManager[None]:
    """Have what is traced inside use Winograd's convolutions on a CPU: for programs that run for minutes.

    They take longer to compile: the sampler of the embedded model 31 instead of 20 s, for 0.2 s a clip.
    """
    return _at(2)


def _level_of(dtype: jnp.dtype) -> int:
    return _level.get() if dtype == jnp.float32 and jax.default_backend() == "cpu" else 0


def on_cpu(dtype: jnp.dtype) -> bool:
    """Return whether a computation in a dtype is to use the forms of this module."""
    return _level_of(dtype) > 0


def convolve(x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "B t f d"]:
    """Return x convolved with the kernel, zeros around x: large ones in `long_runs` by `winograd`."""
    b, t, f, c = x.shape
    large = min(c, kernel.shape[-1]) >= _MIN_CHANNELS and b * t * f >= _MIN_POSITIONS
    if _level_of(x.dtype) > 1 and large and t % _TILE == 0:
        return winograd(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def winograd(x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "B t f d"]:
    """Return x convolved with the kernel, t a multiple of 4, with half the multiplications.

    Along time Winograd's F(4, 3), along frequency as usual: six convolutions with 1x3 kernels on a quarter of the
    frames. On two cores (AMD EPYC, Zen 3; 96 to 416 channels) 1.2 to 1.6 times as fast as XLA's, the gradient of
    the kernel 1.7 to 2.1 times; largest error 1e-5 of outputs of standard deviation 1. Along both axes, F(2, 2) and
    F(4, 4) multiply less still, but lose it on 16 and 36 small products and on moving tiles.

    Source: Lavin & Gray 2016 (arXiv:1509.09308).
    """
    tiles, taps = _tiles(x), jnp.tensordot(_TAPS, kernel, 1)
    products = [
        jax.lax.conv_general_dilated(tile, tap[None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for tile, tap in zip(tiles, taps, strict=True)
    ]
    out = jnp.stack([_weighted_sum(row, products) for row in _OUTPUT], axis=2)
    return out.reshape(*x.shape[:3], kernel.shape[-1])


def _forward(x, kernel):
    return winograd(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    of_x = winograd(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    frames = [gradient[:, i::_TILE] for i in range(_TILE)]
    f, flat = x.shape[2], lambda y: y.reshape(-1, y.shape[-1])
    of_taps = []
    for tile, column in zip(_tiles(x), _OUTPUT.T, strict=True):
        of_product = flat(_weighted_sum(column, frames))
        shifted = (flat(tile[:, :, j : j + f]) for j in range(3))
        of_taps.append(jnp.stack([jax.lax.dot_general(y, of_product, (((0,), (0,)), ((), ()))) for y in shifted]))
    return of_x, jnp.tensordot(_TAPS.T, jnp.stack(of_taps), 1)


winograd.defvjp(_forward, _backward)


def _tiles(x: Float[Array, "B t f c"]) -> list[Float[Array, "B u g c"]]:
    """Return the six transformed inputs of each tile of four frames, a column of zeros on either side."""
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    last = x.shape[1] - (_TILE + 2)
    return [_weighted_sum(row, [x[:, i : i + last + 1 : _TILE] for i in range(_TILE + 2)]) for row in _INPUT]


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    terms = [w * a for w, a in zip(weights.tolist(), arrays, strict=True) if w]
    return sum(terms[1:], terms[0])


@jax.custom_vjp
def _product(x: Float[Array, "N c"], kernel: Float[Array, "c d"]) -> Float[Array, "N d"]:
    return x @ kernel


def _product_backward(saved, gradient):
    # The barrier keeps XLA from writing the gradient transposed, which makes its product with x up to 3.4 times slower.
    x, kernel, gradient = jax.lax.optimization_barrier((*saved, gradient))
    of_x = jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
    return of_x, jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def dot_general(x: Float[Array, "... c"], kernel: Float[Array, "c d"], dimension_numbers, **options) -> Array:
    """Return x @ kernel, for `nn.Dense`; on a CPU, and with no precision asked for, with a faster gradient of it."""
    if not on_cpu(x.dtype) or any(option is not None for option in options.values()):
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def self_attention(q: Float[Array, "B N H D"], k: Float[Array, "B N H D"], v: Float[Array, "B N H D"]) -> Array:
    """Return softmax(q k^T / sqrt(D)) v, [B, N, H, D].

    The sum of the weights comes out of the second product, as one more column, and divides its result: 2.2 times as
    fast as `jax.nn.dot_product_attention` on two cores, 1.5 with gradients (N 512 and 2 048), whose softmax goes
    over the weights once for the sum and once for the division.
    """
    b = q.shape[0]
    heads = lambda x: x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])
    q, k, v = heads(q) * q.shape[-1] ** -0.5, heads(k), heads(v)
    logits = jnp.einsum("hnd,hld->hnl", q, k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum("hnl,hld->hnd", weights, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1))
    out = out[..., :-1] / out[..., -1:]
    return out.reshape(b, -1, *out.shape[1:]).transpose(0, 2, 1, 3)
