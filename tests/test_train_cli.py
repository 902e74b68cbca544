import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _train(*arguments, config="configs/embedded.py"):
    command = [sys.executable, "-m", "dualspec_jax.train", *([f"--config={config}"] if config else []), *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=vae", "--workdir={w}/run"], "--task=vae: must be one of mel_vae, mel_decoder, stft_vae"),
        (["--workdir={w}/run"], "--task=None: must be one of"),
        (["--task=mel_vae"], "--workdir is required"),
        (
            ["--task=mel_vae", "--workdir={w}/run", "--config.train.mel_vae.lrr=1"],
            "unknown field in an override: 'lrr'",
        ),
        (["--task=mel_vae", "--workdir={w}/run", "--config.train.mel_vae.lr=fast"], "could not convert"),
        (["--task=mel_vae", "--workdir={w}/run", "--config.audio.n_bins=3"], "config.audio.n_bins = 3"),
        (["--task=mel_vae", "--workdir={w}/run", "--stop_after=0"], "not a positive integer"),
        (["--task=mel_vae", "--workdir={w}/run", "--step_after=3"], "Unknown command line flag 'step_after'"),
        (["--task=mel_vae", "--workdir={w}/run", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_mistake_is_one_line_and_exit_2(tmp_path, arguments, message):
    result = _train(*(a.format(w=tmp_path) for a in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"), [(None, "--config is required"), ("configs/none.py", "configs/none.py")]
)
def test_missing_config_is_one_line_and_exit_2(tmp_path, config, message):
    result = _train("--task=mel_vae", f"--workdir={tmp_path}/run", config=config)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_missing_data_is_one_line_and_exit_2(tmp_path):
    result = _train("--task=mel_vae", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert "no data set at" in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_help_is_shown():
    result = _train("--help", config=None)
    assert "--stop_after" in result.stdout and "python -m dualspec_jax.train" in result.stdout


@pytest.mark.slow
def test_text_encoder_trains_and_resumes_from_the_command_line(tmp_path):
    train = "--config.train.text_encoder."
    small = ["--config.text.d_model=32", "--config.text.d_ff=32", "--config.text.num_layers=1"]
    small += [f"{train}batch_size=8", f"{train}steps=4", f"{train}log_every=1", f"{train}eval_batches=1"]
    for _ in range(2):
        result = _train("--task=text_encoder", f"--workdir={tmp_path}/run", *small, "--stop_after=2")
        assert result.returncode == 0, result.stderr
    lines = [
        json.loads(text) for text in (tmp_path / "run" / "text_encoder" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    result = _train("--task=text_encoder", f"--workdir={tmp_path}/run", *small, "--config.text.num_heads=1")
    assert result.returncode == 2
    assert "text.num_heads: checkpoint 6, config 1" in result.stderr
