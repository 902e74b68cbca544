import os
import subprocess
import sys

import pytest

from dualspec_jax import allocator

# A program whose arrays take 64 MiB. Small arrays may take a piece of what it freed, and the next run then new memory.
PROGRAM = """
import resource, jax, jax.numpy as jnp
from dualspec_jax import allocator
if {keep}:
    assert allocator.keep_freed_memory()
kept = jax.lax.optimization_barrier
f = jax.jit(lambda x: kept(kept(x + 1)[::-1])[:, ::-1].sum())
x = jnp.ones((2048, 4096))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the GNU C library")
def test_a_program_that_ran_finds_its_memory_again():
    faults = {}
    for keep in (False, True):
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        run = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        faults[keep] = int(run.stdout)
    assert faults[True] < 1000 < 8_000 < faults[False]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
