"""When to use forms of layers that XLA runs faster on a CPU; elsewhere its own are the better ones.

What is traced on a CPU in float32 uses those of `cpu_layers` and kernels of `native`, unless in `accelerator_forms`.
In bfloat16, on processors that multiply in it, arrays stay float32 and kernels of `native` round what they multiply.
Where there are no kernels, `long_runs` use `cpu_convolution`'s forms, which take longer to compile.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dualspec_jax.native import convolution

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
    """Have what is traced inside use the convolutions of `cpu_convolution` on a CPU: for programs that run for minutes.

    Winograd's take longer to compile: the sampler of the embedded model 31 instead of 20 s, for 0.2 s a clip.
    """
    return _at(2)


def level_of(dtype: jnp.dtype) -> int:
    """Return which forms a computation in a dtype is to use, see `_level`."""
    return _level.get() if dtype == jnp.float32 and jax.default_backend() == "cpu" else 0


def on_cpu(dtype: jnp.dtype) -> bool:
    """Return whether a computation in a dtype is to use the forms of `cpu_layers`."""
    return level_of(dtype) > 0


def carried(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of arrays of a computation in a dtype: float32 where only operands of products are rounded."""
    rounds = dtype == jnp.bfloat16 and level_of(jnp.float32) > 0 and convolution.can_round()
    return jnp.float32 if rounds else dtype
