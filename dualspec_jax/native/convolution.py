"""Products and 3x3 convolutions by the kernels of `convolution.cc` and, in bfloat16, of `bfloat16.cc`, on a CPU."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.native import library

_TILE, _PANEL = 4, 16


def can_convolve(frames: int, channels: int, outputs: int) -> bool:
    """Return whether `convolve` is there in float32, for these sizes."""
    return frames % _TILE == 0 and fit(channels, outputs) and library.alone()


def can_round() -> bool:
    """Return whether `convolve` is there in bfloat16: on processors that multiply in it, with one device."""
    return library.alone() and library.has_bfloat16()


def rounds_faster(frames: int) -> bool:
    """Return whether 3x3 convolutions are faster in bfloat16: Winograd's in float32 save more than vectors do."""
    return library.has_matrix_registers() or frames % _TILE != 0


def fit(channels: int, outputs: int) -> bool:
    """Return whether the kernels take as many channels."""
    return channels % _PANEL == 0 and outputs % _PANEL == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"], rounded: bool = False
) -> Float[Array, "B t f d"]:
    """Return x convolved with the kernel, zeros around; if the kernel is [c, d], x [..., c] times it.

    All arrays are float32, also in the gradient. If `rounded`, x, the kernel and the gradient of the result are rounded
    to bfloat16 before they are multiplied, and the products are summed in float32, as a TPU does by default.
    """
    return _convolve(x, kernel, rounded, turned=False)


def _convolve(x, kernel, rounded, turned):
    shape = jax.ShapeDtypeStruct((*x.shape[:-1], kernel.shape[-2 if turned else -1]), jnp.float32)
    return jax.ffi.ffi_call(f"dualspec_convolve{library.SUFFIX[rounded]}", shape)(x, kernel, turned=turned)


def _backward(rounded, saved, gradient):
    x, kernel = saved
    shape = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    of_kernel = jax.ffi.ffi_call(f"dualspec_kernel_gradient{library.SUFFIX[rounded]}", shape)(x, gradient)
    return _convolve(gradient, kernel, rounded, turned=True), of_kernel


convolve.defvjp(lambda x, kernel, rounded: (convolve(x, kernel, rounded), (x, kernel)), _backward)
