"""Set up XLA before the first program: compiled programs kept on disk, faster convolutions and memory on a CPU."""

import os
from pathlib import Path

from dualspec_jax.allocator import keep_freed_memory

# By default jaxlib 0.10.2, 0.11.2 and 0.12.0 hand convolutions to a library that runs 3x3 ones of 64 to 256 channels in
# float32 at 170 to 280 GFLOP/s on two cores, forward and backward at 75 to 275; XLA's own run at 250 to 390 and 250 to
# 350. The empty list leaves all to XLA.
_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"


def enable() -> Path:
    """Turn JAX's persistent compilation cache on and return its folder; to be called before anything is computed.

    The folder is $JAX_COMPILATION_CACHE_DIR, or ~/.cache/dualspec_jax/xla. Adds to $XLA_FLAGS the choice of
    convolutions, unless it names one, and has the process keep the memory that it frees (`allocator`).
    """
    keep_freed_memory()
    import jax
    from jaxlib import version

    flags = os.environ.get("XLA_FLAGS", "")
    # A jaxlib that does not know a flag ends the process.
    if _CONVOLUTIONS not in flags and (0, 10) <= version.__version_info__[:2] <= (0, 12):
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTIONS}=".strip()
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "dualspec_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's own limit of 1 s leaves out three of the sampler's four programs, 2.2 s in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return folder
