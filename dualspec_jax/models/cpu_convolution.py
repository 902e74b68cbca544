"""3x3 convolutions in forms that XLA runs faster on a CPU, forward or backward, than as convolutions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dualspec_jax.models import cpu
from dualspec_jax.native import convolution as native

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
_MIN_CHANNELS, _MIN_POSITIONS = 64, 1024


def convolve(
    x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"], rounded: bool = False
) -> Float[Array, "B t f d"]:
    """Return x convolved with the kernel, zeros around; in `long_runs` by `winograd` or with gradients by products.

    Where there is a compiler kernels in C++ do it, which need no long compilation of XLA's. If `rounded`, operands may
    be rounded to bfloat16, and are where that is the faster way.
    """
    b, t, f, c = x.shape
    if rounded and native.fit(*kernel.shape[2:]) and native.rounds_faster(t):
        return native.convolve(x, kernel, True)
    if cpu.on_cpu(x.dtype) and native.can_convolve(t, c, kernel.shape[-1]):
        return native.convolve(x, kernel)
    if cpu.level_of(x.dtype) < 2 or min(c, kernel.shape[-1]) < _MIN_CHANNELS:
        return _direct(x, kernel)
    return winograd(x, kernel) if b * t * f >= _MIN_POSITIONS and t % _TILE == 0 else _few_positions(x, kernel)


def _direct(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _few_positions(x, kernel):
    """Return x convolved with the kernel, with gradients that are products.

    XLA writes the kernel turned around and transposed, which for 512 channels took 7 of 11 ms (64 positions).
    """
    return _direct(x, kernel)


def _few_positions_backward(saved, gradient):
    x, kernel = saved
    of_windows = jax.lax.dot_general(
        jnp.stack(_windows(gradient)[::-1]), kernel.reshape(9, *kernel.shape[2:]), (((2,), (2,)), ((0,), (0,)))
    )
    windows = jnp.concatenate(_windows(x), axis=1)
    of_kernel = jax.lax.dot_general(windows, gradient.reshape(-1, gradient.shape[-1]), (((0,), (0,)), ((), ())))
    return of_windows.sum(axis=0).reshape(x.shape), of_kernel.reshape(kernel.shape)


_few_positions.defvjp(lambda x, kernel: (_few_positions(x, kernel), (x, kernel)), _few_positions_backward)


def _windows(x: Float[Array, "B t f c"]) -> list[Float[Array, "N c"]]:
    """Return what each of the nine taps sees, [B t f, c]."""
    _, t, f, c = x.shape
    x = _pad(x)
    return [x[:, i : i + t, j : j + f].reshape(-1, c) for i, j in np.ndindex(3, 3)]


@jax.custom_vjp
def winograd(x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "B t f d"]:
    """Return x convolved with the kernel, t a multiple of 4, with half the multiplications.

    Along time Winograd's F(4, 3), along frequency as usual: six convolutions with 1x3 kernels on a quarter of the
    frames. On two cores (AMD EPYC, Zen 3; 96 to 416 channels) 1.2 to 1.6 times as fast as XLA's, the gradient of
    the kernel 1.7 to 2.1 times; largest error 1e-5 of outputs of standard deviation 1. Along both axes, F(2, 2) and
    F(4, 4) multiply less still, but lose it on 16 and 36 small products and on moving tiles.

    Source: Lavin & Gray 2016 (arXiv:1509.09308).
    """
    return _winograd(_pad(x), kernel)


def _winograd(padded, kernel):
    products = [
        jax.lax.conv_general_dilated(tile, tap[None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for tile, tap in zip(_tiles(padded), jnp.tensordot(_TAPS, kernel, 1), strict=True)
    ]
    out = jnp.stack([_weighted_sum(row, products) for row in _OUTPUT], axis=2)
    b, t, f, _ = padded.shape
    return out.reshape(b, t - 2, f - 2, kernel.shape[-1])


def _winograd_backward(saved, gradient):
    x, kernel = saved
    f, flat = x.shape[2], lambda y: y.reshape(-1, y.shape[-1])
    gradient = _pad(gradient)
    of_x = _winograd(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    # Frames of the padded gradient: of the gradient itself XLA would compute each again for every sum.
    frames = [gradient[:, 1 + i : -1 : _TILE, 1 : 1 + f] for i in range(_TILE)]
    of_taps = []
    for tile, column in zip(_tiles(_pad(x)), _OUTPUT.T, strict=True):
        of_product = flat(_weighted_sum(column, frames))
        shifted = (flat(tile[:, :, j : j + f]) for j in range(3))
        of_taps.append(jnp.stack([jax.lax.dot_general(y, of_product, (((0,), (0,)), ((), ()))) for y in shifted]))
    return of_x, jnp.tensordot(_TAPS.T, jnp.stack(of_taps), 1)


winograd.defvjp(lambda x, kernel: (winograd(x, kernel), (x, kernel)), _winograd_backward)


def _pad(x: Float[Array, "B t f c"]) -> Float[Array, "B t+2 f+2 c"]:
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


def _tiles(padded: Float[Array, "B t+2 g c"]) -> list[Float[Array, "B u g c"]]:
    """Return the six transformed inputs of each tile of four frames."""
    last = padded.shape[1] - (_TILE + 2)
    return [_weighted_sum(row, [padded[:, i : i + last + 1 : _TILE] for i in range(_TILE + 2)]) for row in _INPUT]


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    terms = [w * a for w, a in zip(weights.tolist(), arrays, strict=True) if w]
    return sum(terms[1:], terms[0])
