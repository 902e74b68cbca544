"""Compile the C++ kernels for this machine, once, and make them known to XLA."""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
from absl import logging
from jaxlib import version

_FOLDER = Path(__file__).parent
_TARGETS = (
    "dualspec_analyse",
    "dualspec_render",
    "dualspec_convolve",
    "dualspec_kernel_gradient",
    "dualspec_gated_gelu",
    "dualspec_gated_gelu_gradient",
    "dualspec_attend",
    "dualspec_attention_gradient",
    "dualspec_attend_bfloat16",
    "dualspec_attention_gradient_bfloat16",
    "dualspec_convolve_bfloat16",
    "dualspec_kernel_gradient_bfloat16",
)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-w")
SUFFIX = {False: "", True: "_bfloat16"}  # of the targets that round what they multiply
_TIMEOUT = 300  # seconds for one run of the compiler


def available() -> bool:
    """Return whether the kernels are there, for a CPU as JAX's default device; compiled now if they are not yet.

    They need a C++ compiler: $CXX, or g++ (12 or newer) or clang++ on the path. What they are compiled to lies in
    $DUALSPEC_NATIVE_DIR, or ~/.cache/dualspec_jax/native, a file for each compiler and processor. DUALSPEC_NATIVE=0
    switches them off. Where anything fails, a line of the log says what.
    """
    return _library() is not None


@functools.cache
def has_bfloat16() -> bool:
    """Return whether the kernels that round to bfloat16 are there: by AMX or the vectors of AVX512_BF16."""
    return _ask("dualspec_has_bfloat16")


@functools.cache
def has_matrix_registers() -> bool:
    """Return whether these kernels multiply by the matrix registers (AMX), not by vectors."""
    return _ask("dualspec_has_matrix_registers")


def _ask(name: str) -> bool:
    if _library() is None:
        return False
    function = getattr(_library(), name)
    function.restype = ctypes.c_bool
    return function()


@functools.cache
def _library() -> ctypes.CDLL | None:
    if jax.default_backend() != "cpu" or os.environ.get("DUALSPEC_NATIVE", "1") == "0":
        return None
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++")]
    if not compiler[0]:
        logging.info("no C++ compiler: kernels for the CPU are those of XLA")
        return None
    try:
        library = ctypes.CDLL(str(_compile(compiler)))
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        logging.warning(
            "kernels for the CPU are those of XLA, as the faster ones failed: %s", said[0] if said else error
        )
        return None
    return library


def alone() -> bool:
    """Return whether kernels for layers are there: not on several devices, which XLA cannot share them out to."""
    return jax.device_count() == 1 and available()


def _compile(compiler: list[str]) -> Path:
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    target = run([*compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull]).stdout  # its version, this processor
    sources = sorted([*_FOLDER.glob("*.cc"), *_FOLDER.glob("*.h")])
    parts = [target, version.__version__, *_FLAGS, *(path.read_text() for path in sources)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("DUALSPEC_NATIVE_DIR") or Path.home() / ".cache" / "dualspec_jax" / "native")
    path = folder / f"{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:  # several processes may compile at once
            built = Path(part, "kernels.so")
            units = [str(source) for source in sources if source.suffix == ".cc"]
            run([*compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", *units, "-o", str(built)])
            os.replace(built, path)
    return path
