import functools
import json
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
from tiny import save_tiny_bundle

from dualspec_jax import sample
from dualspec_jax.pipeline import DualSpecPipeline
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.wav import read_wav

PROMPT = "a dog barking at 10 o'clock"


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    save_tiny_bundle(path)
    return path


@pytest.fixture(scope="module")
def load():
    """Load each bundle once, so that its programs are compiled once."""
    return functools.cache(functools.partial(DualSpecPipeline.from_pretrained, cache=False))


@pytest.fixture
def run(bundle_dir, load, tmp_path, monkeypatch, capsys):
    """Run the command line in a fresh folder; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DualSpecPipeline, "from_pretrained", load)

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
    assert set(record["measured"]) >= {"azimuth_deg", "itd_us", "ild_db", "lufs", "peak", "scaled_down", "silent"}
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


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_prompts_file_gives_a_clip_per_line_and_a_manifest(run, tmp_path):
    (tmp_path / "p.txt").write_text("# two\na dog barks on my left\n\nrain behind me\n")
    assert run("--prompts-file", "p.txt", "--batch-size", "2", "--out", "new/folder")[0] == 0
    entries = manifest(tmp_path / "new" / "folder")
    assert [(e["line"], e["status"], e["seed"]) for e in entries] == [(2, "made", 0), (4, "made", 1)]
    assert all((tmp_path / e["file"]).is_file() and e["measured"]["peak"] > 0 for e in entries)


def test_failing_rows_are_reported_and_the_rest_is_made(run, tmp_path):
    rows = [
        "prompt,azimuth,seed,name",
        "rain,30,7,a/wet",
        "a dog at 14 o'clock,,,",
        "rain,900,,",
        "rain,30,8,a/wet",
        "a dog,,,",
    ]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    status, out, err = run("--prompts-file", "p.csv", "--out", "o")
    assert status == 1 and "2 clips in" in out and "3 failed" in out
    assert [line[:13] for line in err.splitlines() if "error" in line] == [f"error: line {i}" for i in (3, 4, 5)]
    entries = {e["line"]: e for e in manifest(tmp_path / "o")}
    assert {n: e["status"] for n, e in entries.items()} == {2: "made", 3: "failed", 4: "failed", 5: "failed", 6: "made"}
    assert "14" in entries[3]["error"] and "azimuth" in entries[4]["error"] and "two clips" in entries[5]["error"]
    record = json.loads((tmp_path / "o" / "a" / "wet.json").read_text())
    assert (record["seed"], record["azimuth_deg"]) == (7, 30.0)


def test_skip_existing_makes_what_is_missing_and_refuses_what_is_another(run, tmp_path):
    (tmp_path / "p.txt").write_text("rain on my left\na dog\nrain behind me\n")
    args = ("--prompts-file", "p.txt", "--out", "o", "--skip-existing")
    assert run(*args)[0] == 0
    dog = tmp_path / "o" / "a-dog_seed1.wav"
    kept = (tmp_path / "o" / "rain-on-my-left_seed0.wav").stat().st_mtime_ns
    first = dog.read_bytes()
    dog.with_suffix(".json").unlink()  # as if killed between the two files
    dog.write_bytes(b"half")
    status, out, _ = run(*args)
    assert status == 0 and "1 clip in" in out and "2 skipped" in out and dog.read_bytes() == first
    assert (tmp_path / "o" / "rain-on-my-left_seed0.wav").stat().st_mtime_ns == kept
    assert sorted(e["status"] for e in manifest(tmp_path / "o")) == ["made", "skipped", "skipped"]
    status, _, err = run(*args, "--steps", "2")
    assert status == 1 and "made with another steps; --overwrite replaces it" in err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(run, tmp_path, monkeypatch):
    """Ten times the prompts; the model makes one clip that then serves for all: the rest reads, checks and writes."""
    from dualspec_jax.pipeline import ClipMaker

    make, first, peaks = ClipMaker.iterate, [], []

    def repeat(self, requests, callback=None):
        first.extend([] if first else make(self, requests[:1]))
        return iter(first * len(requests))

    monkeypatch.setattr(ClipMaker, "iterate", repeat)
    for count in (8, 200, 2000):
        (tmp_path / "p.txt").write_text("rain on my left\n" * count)
        tracemalloc.start()
        assert run("--prompts-file", "p.txt", "--out", f"o{count}", "--batch-size", "8")[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(manifest(tmp_path / f"o{count}")) == count
    assert peaks[2] < peaks[1] + 2e6


def test_interrupt_leaves_whole_clips_and_no_manifest(run, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("rain\na dog\nwind\n")
    from dualspec_jax.pipeline import ClipMaker

    make, calls = ClipMaker.iterate, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(self, *args)

    monkeypatch.setattr(ClipMaker, "iterate", interrupted)
    status, _, err = run("--prompts-file", "p.txt", "--out", "o")
    assert status == 130 and "--skip-existing goes on" in err
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["rain_seed0.json", "rain_seed0.wav"]


def test_options_reach_the_record(run, tmp_path):
    args = ["--steps", "2", "--guidance", "3,2", "--eta", "0.5", "--azimuth", "62.5", "--negative-prompt", "rain"]
    args += ["--duration", "0.5", "--normalise", "-40", "--format", "wav_float", "--best-of", "2", "--spacing", "2.5"]
    status, _, err = run("--prompt", "a dog barking", *args, "--vocoder", "griffin_lim", "--out", "a.wav")
    assert status == 0, err
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["steps"], record["guidance_mel"], record["guidance_stft"], record["eta"]) == (2, 3.0, 2.0, 0.5)
    assert (record["azimuth_deg"], record["negative_prompt"]) == (62.5, "rain")
    assert (record["vocoder"], record["solver"], record["spacing"]) == ("griffin_lim", "ddim", 2.5)
    assert (record["duration_s"], record["normalise_lufs"], record["best_of"]) == (0.5, -40.0, 2)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.subtype, info.frames) == ("FLOAT", 8000)


def test_solver_and_interval_reach_the_record(run, tmp_path):
    args = ["--solver", "unipc", "--guidance-interval", "0.2,0.9", "--guidance", "2"]
    assert run("--prompt", PROMPT, *args, "--out", "a.flac")[0] == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["solver"], record["guidance_interval"]) == ("unipc", [0.2, 0.9])
    assert (record["guidance_mel"], record["guidance_stft"]) == (2.0, 2.0)
    assert soundfile.info(tmp_path / "a.flac").format == "FLAC"


def test_hrtf_of_the_measurement_is_chosen(run, tmp_path):
    source = spherical_head()
    fields = {name: getattr(source, name) for name in ("azimuth_deg", "elevation_deg", "sample_rate")}
    np.savez(tmp_path / "plain.npz", hrir=source.hrir, **fields)
    np.savez(tmp_path / "swapped.npz", hrir=source.hrir[:, ::-1], **fields)
    azimuths = []
    for name in ("plain.npz", "swapped.npz"):
        assert run("--prompt", PROMPT, "--out", "a.wav", "--overwrite", "--hrtf", name)[0] == 0
        azimuths.append(json.loads((tmp_path / "a.json").read_text())["measured"]["azimuth_deg"])
    assert sum(azimuths) == pytest.approx(360.0, abs=0.3)


def test_profile_adds_up(run):
    status, out, _ = run("--prompt", PROMPT, "--out", "a.wav", "--profile")
    lines = [line.split() for line in out.splitlines() if re.fullmatch(r" *[a-z]+ +-?\d+\.\d\d s", line)]
    names = ["import", "load", "compile", "encode", "sample", "rank", "decode", "vocode", "measure", "write", "other"]
    assert status == 0 and [line[0] for line in lines] == names


def test_spectrogram_is_a_picture(run, tmp_path):
    assert run("--prompt", PROMPT, "--out", "a.wav", "--spectrogram", "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_existing_files_are_kept_without_overwrite(run, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"mine")
    refused(run("--prompt", PROMPT, "--out", "a.wav"), "a.wav", "--overwrite")
    assert (tmp_path / "a.wav").read_bytes() == b"mine"
    assert run("--prompt", PROMPT, "--out", "a.wav", "--overwrite")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() != b"mine"


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
    refused(run("--prompt", PROMPT, "--solver", "x"), "solver")
    refused(run("--prompt", PROMPT, "--guidance-interval", "0.9,0.2"), "guidance-interval")
    refused(run("--prompt", PROMPT, "--duration", "9"), "duration = 9")
    refused(run("--prompt", PROMPT, "--normalise", "5"), "normalise")
    refused(run("--prompt", PROMPT, "--best-of", "0"), "best_of")


def test_impossible_combinations(run):
    refused(run("--prompt", PROMPT, "--solver", "unipc", "--eta", "0.5"), "eta", "ddim")
    refused(run("--prompt", PROMPT, "--overwrite", "--skip-existing"), "not allowed with")
    refused(run("--prompt", PROMPT, "--format", "flac", "--out", "a.wav"), "needs the suffix .flac")
    refused(run("--prompt", "a zither", "--best-of", "2"), "names no direction")
    refused(run("--promt", PROMPT), "unrecognized")


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
