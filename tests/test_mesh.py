"""The diffusion model on eight devices, and on two processes, gives the losses of one (tests/helpers/mesh_run.py)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def start(devices, *arguments):
    flag = f"--xla_force_host_platform_device_count={devices}"
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"
    env = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "mesh_run.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])  # Gloo prints lines of its own before


@pytest.mark.slow
def test_eight_devices_and_two_processes_train_like_one():
    meshes = ("8x1x1", "1x8x1", "2x2x2")
    results = finish(start(8, 20, "1x1x1", *meshes))
    one = results["1x1x1"]
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    processes = [start(4, 20, *meshes, "--process", i, 2, address) for i in range(2)]
    results_of_two = [finish(process) for process in processes]
    for mesh in meshes:
        for found in (results, *results_of_two):
            np.testing.assert_allclose(found[mesh]["losses"], one["losses"], rtol=1e-4)
            assert found[mesh]["bytes"] == results[mesh]["bytes"]
        assert one["losses"][-1] < one["losses"][0]
    for part, size in one["bytes"].items():
        assert results["8x1x1"]["bytes"][part] == size
        for mesh in ("1x8x1", "2x2x2"):  # biases and scales under min_shard_size stay whole
            split = int(np.prod([int(n) for n in mesh.split("x")][1:]))
            assert size / split <= results[mesh]["bytes"][part] < 1.5 * size / split


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--remat",), ("--accumulate", 2), ("--dtype", "bfloat16")])
def test_other_ways_to_compute_train_alike(arguments):
    plain, other = finish(start(2, 10, "1x1x1")), finish(start(2, 10, "2x1x1", *arguments))
    # Parts of a batch draw their own noise, and bfloat16 has 8 bits: the losses are alike, not equal.
    tolerance = 1e-4 if arguments == ("--remat",) else 0.1
    np.testing.assert_allclose(other["2x1x1"]["losses"], plain["1x1x1"]["losses"], rtol=tolerance)
