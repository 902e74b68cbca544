import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dualspec_jax import compile_cache


@pytest.fixture(autouse=True)
def _restore():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    assert compile_cache.enable() == tmp_path / "cache"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")


def test_folder_defaults_to_the_home(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert compile_cache.enable() == Path.home() / ".cache" / "dualspec_jax" / "xla"


PROGRAM = """
import jax, jax.numpy as jnp
from dualspec_jax import compile_cache
compile_cache.enable()
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print(jax.jit(conv).lower(jnp.zeros((4, 16, 8, 96)), jnp.zeros((3, 3, 96, 96))).compile().as_text())
"""


@pytest.mark.parametrize(
    "given", ["", "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"]
)
def test_convolutions_are_xlas_own_unless_the_user_chose(given, tmp_path):
    env = os.environ | {"XLA_FLAGS": given, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert ("ynn_fusion" in run.stdout) == bool(given)


MIDDLING_PROGRAM = """
import jax, jax.numpy as jnp
from dualspec_jax import compile_cache
compile_cache.enable()

def middling(x):
    for i in range(40):
        x = jnp.sort(jnp.sin(x + i), axis=i % 2)
    return x

jax.jit(middling).lower(jnp.zeros((8, 8))).compile()
"""


def test_programs_that_compile_in_less_than_a_second_are_kept(tmp_path):
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", MIDDLING_PROGRAM], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.glob("jit_middling*"))
