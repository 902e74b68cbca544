import logging
import shutil

import pytest

from dualspec_jax.native import library

look = library._library.__wrapped__  # without what this process found before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALSPEC_NATIVE_DIR", str(tmp_path / "native"))
    return tmp_path / "native"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_compiles_once_and_leaves_nothing_else(folder):
    first = library._compile(["g++"])
    written = first.stat().st_mtime_ns
    assert library._compile(["g++"]) == first and first.stat().st_mtime_ns == written
    assert list(folder.iterdir()) == [first]


def test_can_be_switched_off(folder, monkeypatch):
    monkeypatch.setenv("DUALSPEC_NATIVE", "0")
    assert look() is None and not folder.exists()


def test_goes_without_a_compiler(folder, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    assert look() is None


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler"])
def test_says_what_failed_and_goes_on(folder, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert look() is None
    assert "kernels for the CPU are those of XLA" in caplog.text
    assert not list(folder.glob("*.so"))
