"""Products and 3x3 convolutions that round their operands to bfloat16, by the kernels of `bfloat16.cc`, on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.native import library

_TILE = 16


def available() -> bool:
    """Return whether the kernels are there: on processors with AMX, with one device."""
    return library.alone() and library.has_bfloat16()


def can_multiply(channels: int, outputs: int) -> bool:
    """Return whether `multiply` takes arrays of these sizes."""
    return channels % _TILE == 0 and outputs % _TILE == 0


@jax.custom_vjp
def multiply(x: Float[Array, "... c"], kernel: Float[Array, "... c d"]) -> Float[Array, "... d"]:
    """Return x @ kernel, or with a kernel [3, 3, c, d] x [B, t, f, c] convolved with it, zeros around.

    All arrays are float32, also in the gradient; x, the kernel and the gradient of the result are rounded to bfloat16
    before they are multiplied, and the products are summed in float32, as a TPU does by default.
    """
    return _multiply(x, kernel, False)


def _multiply(x, kernel, turned):
    shape = (*x.shape[:-1], kernel.shape[-2 if turned else -1])
    call = jax.ffi.ffi_call("dualspec_convolve_bfloat16", jax.ShapeDtypeStruct(shape, jnp.float32))
    return call(x, kernel, turned=turned)


def _backward(saved, gradient):
    x, kernel = saved
    result = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    of_kernel = jax.ffi.ffi_call("dualspec_kernel_gradient_bfloat16", result)(x, gradient)
    return _multiply(gradient, kernel, True), of_kernel


multiply.defvjp(lambda x, kernel: (multiply(x, kernel), (x, kernel)), _backward)
