"""3x3 convolutions by the kernels of `convolution.cc`, on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.native import library

_TILE, _PANEL = 4, 16


def can_convolve(frames: int, channels: int, outputs: int) -> bool:
    """Return whether `convolve` is there, for these sizes."""
    fits = frames % _TILE == 0 and channels % _PANEL == 0 and outputs % _PANEL == 0
    return fits and library.alone()


@jax.custom_vjp
def convolve(x: Float[Array, "B t f c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "B t f d"]:
    """Return `models.cpu_convolution.winograd` of x and the kernel."""
    return _convolve(x, kernel, False)


def _convolve(x, kernel, turned):
    shape = (*x.shape[:-1], kernel.shape[2 if turned else 3])
    return jax.ffi.ffi_call("dualspec_convolve", jax.ShapeDtypeStruct(shape, jnp.float32))(x, kernel, turned=turned)


def _backward(saved, gradient):
    x, kernel = saved
    call = jax.ffi.ffi_call("dualspec_kernel_gradient", jax.ShapeDtypeStruct(kernel.shape, jnp.float32))
    return _convolve(gradient, kernel, True), call(x, gradient)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _backward)
