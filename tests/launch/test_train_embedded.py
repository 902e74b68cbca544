import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "train_embedded.sh"
# Records its arguments; fails where the arguments hold $FAIL; prints devices when asked by -c.
STUB = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo "2 cpu"; exit 0; fi
echo "$*" >> "$CALLS"
[[ -n ${FAIL:-} && "$*" == *"$FAIL"* ]] && exit 3
exit 0
"""


@pytest.fixture
def run(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "data").mkdir()

    def call(**env):
        calls = tmp_path / "calls"
        calls.write_text("")
        variables = os.environ | {"PYTHON": str(stub), "DUALSPEC_DATA": str(tmp_path / "data"), "CALLS": str(calls)}
        done = subprocess.run([SCRIPT, tmp_path / "work"], env=variables | env, capture_output=True, text=True)
        return done, calls.read_text().splitlines(), (tmp_path / "work" / "times.tsv").read_text().splitlines()

    return call


def test_stages_run_in_order_and_their_times_are_kept(run, tmp_path):
    done, calls, times = run()
    assert done.returncode == 0, done.stderr
    modules = [call.split()[1] for call in calls]
    train = ["dualspec_jax.train"]
    assert modules == [
        *["data.spatial_audio.build"] * 2, *train * 8, "dualspec_jax.encode", *train * 2, "dualspec_jax.export",
        "dualspec_jax.evaluate",
    ]  # fmt: skip
    tasks = [call.split("--task ")[1].split()[0] for call in calls if "--task" in call]
    assert tasks == [
        "text_encoder", "reader", "mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "vocoder", "listener",
        "event_guide", "diffusion",
    ]  # fmt: skip
    (mixed,) = [call for call in calls if "feeding.mix" in call]
    assert "--task stft_decoder" in mixed and "spatial_audio_rooms" in mixed
    names = [line.split("\t")[0] for line in times]
    assert names == ["build", "build_rooms", *tasks[:8], "encode", *tasks[8:], "export", "evaluate"]
    assert all(line.split("\t")[2:] == ["0", "2 cpu"] for line in times)
    assert all(f"--workdir {tmp_path / 'work'}" in call for call in calls[2:13])


def test_a_failing_stage_ends_the_run_with_its_status(run):
    done, calls, times = run(FAIL="--task stft_vae")
    assert done.returncode == 3
    assert "--task stft_vae" in calls[-1]
    assert times[-1].split("\t")[::2] == ["stft_vae", "3"]
