import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny import save_tiny_bundle

from dualspec_jax import generate, sample
from dualspec_jax.wav import read_wav

PROMPT = "a dog barking at 10 o'clock"


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    save_tiny_bundle(path)
    return path


@pytest.fixture
def run(bundle_dir, tmp_path, monkeypatch, capsys):
    """Run the command line in a fresh folder; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        try:
            status = sample.main(["--bundle", str(bundle_dir), *args])
        except SystemExit as e:  # argparse
            status = e.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def refused(result, *words):
    status, _, err = result
    assert status == 2, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def test_writes_wav_and_record_and_prints_both_paths(run, tmp_path):
    status, out, _ = run("--prompt", PROMPT, "--out", "dog.wav", "--seed", "3")
    assert status == 0
    waveform, rate = read_wav(tmp_path / "dog.wav")
    assert rate == 16000 and waveform.shape == (10240, 2)
    record = json.loads((tmp_path / "dog.json").read_text())
    assert record["prompt"] == PROMPT and record["seed"] == 3 and record["parsed_azimuth_deg"] == 60.0
    assert record["azimuth_deg"] is None and record["steps"] == 3 and len(record["bundle_sha256"]) == 64
    assert set(record["measured"]) == {"itd_us", "ild_db", "peak", "silent"}
    assert record["measured"]["peak"] == pytest.approx(np.abs(waveform).max(), abs=1e-3)
    assert out.splitlines()[:2] == ["dog.wav", "dog.json"]
    assert re.search(r"1 clip in \d+\.\d s", out)


def test_default_name_comes_from_prompt_and_seed(run, tmp_path):
    assert run("--prompt", PROMPT)[0] == 0
    assert (tmp_path / "a-dog-barking-at-10-o-clock_seed0.wav").exists()


def test_num_and_seed_give_the_same_bytes_alone_and_together(run, tmp_path):
    (tmp_path / "many").mkdir()
    assert run("--prompt", PROMPT, "--num", "3", "--seed", "5", "--out", "many")[0] == 0
    assert run("--prompt", PROMPT, "--seed", "6", "--out", "alone.wav")[0] == 0
    together = tmp_path / "many" / "a-dog-barking-at-10-o-clock_seed6.wav"
    assert together.read_bytes() == (tmp_path / "alone.wav").read_bytes()
    assert len(list((tmp_path / "many").glob("*.wav"))) == 3


def test_prompts_file_gives_a_clip_per_line(run, tmp_path):
    (tmp_path / "p.txt").write_text("# two\na dog barks on my left\n\nrain behind me\n")
    assert run("--prompts-file", "p.txt", "--batch-size", "2")[0] == 0
    assert len(list(tmp_path.glob("*.wav"))) == 2


def test_options_reach_the_record(run, tmp_path):
    args = ["--steps", "2", "--guidance", "3,2", "--eta", "0.5", "--azimuth", "62.5", "--negative-prompt", "rain"]
    status, _, err = run("--prompt", "a dog barking", *args, "--vocoder", "griffin_lim_stft", "--out", "a.wav")
    assert status == 0, err
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["steps"], record["guidance_mel"], record["guidance_stft"], record["eta"]) == (2, 3.0, 2.0, 0.5)
    assert (record["azimuth_deg"], record["negative_prompt"]) == (62.5, "rain")
    assert record["vocoder"] == "griffin_lim_stft"


def test_spectrogram_is_a_picture(run, tmp_path):
    assert run("--prompt", PROMPT, "--out", "a.wav", "--spectrogram", "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_existing_files_are_kept_without_overwrite(run, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"mine")
    refused(run("--prompt", PROMPT, "--out", "a.wav"), "a.wav", "--overwrite")
    assert (tmp_path / "a.wav").read_bytes() == b"mine"
    assert run("--prompt", PROMPT, "--out", "a.wav", "--overwrite")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() != b"mine"


def test_vocoders_of_the_help_are_those_of_generate():
    assert sample.VOCODERS == generate.VOCODERS


def test_list_sounds(run):
    status, out, _ = run("--list-sounds")
    assert status == 0 and out.split("\n")[:2] == ["dog barking", "rain"]


def test_no_direction_is_said(run):
    status, out, _ = run("--prompt", "a dog barking", "--out", "a.wav")
    assert status == 0 and "direction is free" in out


def test_unknown_sound_warns_and_names_near_ones(run):
    status, _, err = run("--prompt", "a xylophone quartet on my left", "--out", "a.wav")
    assert status == 0 and "near ones" in err and "--list-sounds" in err


def test_long_prompt_is_cut_with_a_warning(run, tmp_path):
    status, _, err = run("--prompt", "a dog barking on my left " + "and barking " * 833, "--out", "a.wav")
    assert status == 0 and "cut to 1000" in err and "tokens are read" in err


def test_empty_prompt(run):
    refused(run("--prompt", "  "), "prompt")
    refused(run(), "prompt")


def test_contradictory_directions(run, tmp_path):
    refused(run("--prompt", "a dog on my left at 3 o'clock"), "o'clock")
    refused(run("--prompt", PROMPT, "--azimuth", "200"), "azimuth", "200")
    assert not list(tmp_path.iterdir())


def test_unknown_direction(run):
    refused(run("--prompt", "a dog barking at 14 o'clock"), "14")


@pytest.mark.parametrize("value", ["nan", "inf", "400", "-360"])
def test_azimuth_out_of_range(run, value):
    refused(run("--prompt", "a dog barking", f"--azimuth={value}"), "azimuth")


def test_numbers_out_of_range(run):
    refused(run("--prompt", PROMPT, "--steps", "0"), "steps")
    refused(run("--prompt", PROMPT, "--eta", "2"), "eta")
    refused(run("--prompt", PROMPT, "--guidance", "x"), "guidance")
    refused(run("--prompt", PROMPT, "--num", "0"), "num")
    refused(run("--prompt", PROMPT, "--seed", "-1"), "seed")
    refused(run("--prompt", PROMPT, "--batch-size", "0"), "batch_size")
    refused(run("--prompt", PROMPT, "--vocoder", "x"), "vocoder")


def test_missing_output_folder(run):
    refused(run("--prompt", PROMPT, "--out", "none/a.wav"), "none")
    refused(run("--prompt", PROMPT, "--out", "none"), "none")
    refused(run("--prompt", PROMPT, "--spectrogram", "none/a.png"), "none")


def test_one_file_name_for_several_clips(run):
    refused(run("--prompt", PROMPT, "--num", "2", "--out", "a.wav"), "2 clips")


def test_missing_prompts_file_and_bundle(run, tmp_path):
    refused(run("--prompts-file", "none.txt"), "none.txt")
    assert sample.main(["--prompt", PROMPT, "--bundle", str(tmp_path / "none")]) == 2


def test_full_disk_leaves_nothing(bundle_dir, tmp_path):
    """A file-size limit stops the write half-way, as a full disk does."""

    cache = tmp_path / "cache"
    env = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "dualspec_jax.sample", "--bundle", str(bundle_dir), "--prompt", PROMPT]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *command, "--out", str(out)]  # in KiB
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert not list(out.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_read_only_folder(run, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    refused(run("--prompt", PROMPT, "--out", "locked"), "locked")


def test_folder_that_cannot_be_written_to(run):
    """/proc refuses new files even to root."""
    refused(run("--prompt", PROMPT, "--out", "/proc/a.wav"), "/proc/a.wav")
