from pathlib import Path

import jax
import pytest

from dualspec_jax import compile_cache


@pytest.fixture(autouse=True)
def _restore():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    assert compile_cache.enable() == tmp_path / "cache"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")


def test_folder_defaults_to_the_home(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert compile_cache.enable() == Path.home() / ".cache" / "dualspec_jax" / "xla"
