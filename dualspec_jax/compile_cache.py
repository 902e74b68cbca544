"""Keep compiled programs on disk, so that the second start of a command line takes seconds."""

import os
from pathlib import Path


def enable() -> Path:
    """Turn JAX's persistent compilation cache on and return its folder.

    The folder is $JAX_COMPILATION_CACHE_DIR, or ~/.cache/dualspec_jax/xla.
    """
    import jax

    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "dualspec_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
