import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualspec_jax.chips import CHIPS
from dualspec_jax.plan import collective_bytes, parse_mesh, predict, report

ROOT = Path(__file__).resolve().parents[1]

HLO = """\
HloModule jit_train_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(f32[] %x, f32[] %y)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %a), replica_groups={{0,1,2,3}}, dimensions={0}
  %r = (f32[4], bf16[2]) all-reduce(f32[4] %b, bf16[2] %c), replica_groups=[2,2]<=[4], to_apply=%add
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %s = f32[2]{0} reduce-scatter(f32[8]{0} %p0), replica_groups={{0,1,2,3}}, to_apply=%add
  %c = bf16[10]{0} collective-permute(bf16[10]{0} %q), source_target_pairs={{0,1},{1,0}}
  %n = f32[8]{0} add(f32[8]{0} %p0, f32[8]{0} %p0)
}
"""


def test_collectives_are_counted_by_hand():
    sent = collective_bytes(HLO, 4)
    assert sent == {
        "all-gather": 3 * 0.75 * 8 * 4 * 4,
        "all-reduce": 3 * 2 * 0.5 * (16 + 4),
        "reduce-scatter": 3 * 2 * 4,
        "collective-permute": 20,
    }


def test_collectives_between_nodes_are_those_whose_groups_leave_a_block():
    assert collective_bytes(HLO, 4, across=4) == {}
    assert collective_bytes(HLO, 4, across=2) == {"all-gather": 3 * 0.75 * 8 * 4 * 4, "reduce-scatter": 3 * 2 * 4}
    strided = HLO.replace("[2,2]<=[4]", "[2,2]<=[2,2]T(1,0)")  # {0, 2} and {1, 3}
    assert collective_bytes(strided, 4, across=2)["all-reduce"] == collective_bytes(HLO, 4)["all-reduce"]


def a_plan(temporary=10e9):
    parts = {"params": 2e9, "ema_params": 2e9, "opt_state": 4e9, "frozen": 1e9, "batch": 1e6, "temporary": temporary}
    return {
        "task": "diffusion",
        "parameters": 866_000_000,
        "devices": 8,
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
        "batch_size": 64,
        "flops": {"model": 6e14, "with_recomputation": 8e14},
        "bytes": parts | {"arguments": 9e9},
        "sent": {"all-gather": 2e9},
        "sent_between_nodes": 5e8,
        "dtype": "bfloat16",
    }


def test_prediction_is_the_sum_of_its_parts():
    p = predict(a_plan(), "v5e", 0.5)
    assert p["compute"] == pytest.approx(8e14 / 8 / (197e12 * 0.5))
    assert p["memory"] == pytest.approx(2 * 8e9 / 819e9)
    assert p["communication"] == pytest.approx(2e9 / 200e9)
    assert p["step"] == pytest.approx(p["compute"] + p["memory"] + p["communication"])
    assert p["mfu"] == pytest.approx(6e14 / 8 / 197e12 / p["step"]) and p["mfu"] < 0.5
    assert p["used"] == pytest.approx(19e9 / 16e9)


def test_between_nodes_of_gpus_it_goes_over_their_network():
    assert predict(a_plan(), "H100", 0.5)["communication"] == pytest.approx(1.5e9 / 450e9 + 5e8 / 50e9)


def test_float32_has_a_peak_of_its_own():
    p = predict(a_plan() | {"dtype": "float32"}, "H100", 0.5)
    assert p["compute"] == pytest.approx(8e14 / 8 / (494e12 * 0.5))
    assert p["mfu"] == pytest.approx(6e14 / 8 / 494e12 / p["step"])
    assert "peak in float32" in report(a_plan() | {"dtype": "float32"}, "H100", 0.5)


def test_report_says_where_it_runs_out_of_memory():
    lines = report(a_plan(), "v5e", 0.5).splitlines()
    verdict = {name: next(line for line in lines if line.startswith(f"  {name:5s}")) for name in CHIPS}
    assert "OUT OF MEMORY, largest: temporary; more devices on data or fsdp" in verdict["v5e"]
    assert verdict["H100"].endswith("fits") and "23.8%" in verdict["H100"]


@pytest.mark.parametrize("text", ["8", "2x4", "0x1x1", "2x2xa", "1x1x1x1"])
def test_mesh_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="must be DATAxFSDPxTENSOR"):
        parse_mesh(text)


def plan(*arguments):
    command = [sys.executable, "-m", "dualspec_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is required"),
        (("--config=configs/embedded.py", "--mesh=2x2x2", "--devices=4"), "its product must be --devices=4"),
        (("--config=configs/embedded.py", "--task=classifier"), "--task=classifier: must be one of"),
        (
            ("--config=configs/embedded.py", "--devices=3"),
            "--devices=3: train.diffusion.batch_size / accumulate = 16 must be a multiple of data * fsdp = 3",
        ),
        (("--config=configs/embedded.py", "--efficiency=nan"), "--efficiency=nan: must be in [0.01, 1]"),
        (("--config=configs/embedded.py", "--out=plan.pdf"), "plan.pdf: must be a file named *.png"),
        (("--config=configs/embedded.py", "--json=tests"), "tests: must be a file"),
        (("--config=configs/embedded.py", "--json=no/plan.json"), "no/plan.json: its folder does not exist"),
    ],
)
def test_mistake_is_one_line_and_exit_2(arguments, message):
    result = plan(*arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.slow
def test_memory_of_a_small_model_falls_with_fsdp_and_is_what_the_compiler_says(tmp_path):
    small = ["--config.text.d_model=64", "--config.text.num_layers=1", "--config.mesh.min_shard_size=256"]
    small += ["--config.unet.channels=(64,96)", "--config.unet.attention=(False,True)"]
    found = {}
    for mesh in ("4x1x1", "1x4x1"):
        out = tmp_path / f"{mesh}.json"
        result = plan(
            "--config=configs/embedded.py", "--devices=4", f"--mesh={mesh}", f"--json={out}",
            f"--out={tmp_path}/plan.png", *small
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found[mesh] = json.loads(out.read_text())
        b = found[mesh]["bytes"]
        parts = sum(b[name] for name in ("params", "ema_params", "opt_state", "frozen", "batch"))
        # The compiler also counts the key, and leaves out what the program does not read.
        assert b["arguments"] == pytest.approx(parts, rel=0.02) and b["temporary"] > 0
    whole, split = found["4x1x1"]["bytes"], found["1x4x1"]["bytes"]
    for name in ("params", "ema_params", "opt_state"):
        assert split[name] == pytest.approx(whole[name] / 4, rel=0.05)
    assert found["4x1x1"]["sent"]["all-reduce"] == pytest.approx(2 * 0.75 * whole["params"], rel=0.1)
    assert found["1x4x1"]["sent"]["all-gather"] > 0
    assert (tmp_path / "plan.png").stat().st_size > 1000
