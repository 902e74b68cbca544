import base64
import dataclasses
import hashlib
import html
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from data.clips import Clips
from data.sources import Recording, read_source
from data.spatial_audio import job as jobs
from data.spatial_audio.build import build, main
from data.spatial_audio.recipe import Recipe
from data.spatial_audio.scenes import Material, make_scene, plan_scenes
from data.spatial_audio.spatial_audio_dataset_builder import Builder, SpatialAudioConfig
from dualspec_jax import preview
from dualspec_jax.config import default
from dualspec_jax.metrics import itd_us
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.coding import COHERENCE_ERROR, LEVEL_ERROR, decode_stft_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.direction import parse_direction, parse_directions
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.room import RoomRanges

AUDIO = default().audio


def make_source(root):
    """Write five noisy clips of three labels; the last clip is `valid`."""
    rng = np.random.default_rng(0)
    (root / "events" / "audio").mkdir(parents=True)
    rows = ["file,label,split,licence,source_group"]
    for i, (label, split) in enumerate(
        [("dog barking", "train"), ("dog barking", "train"), ("rain", "train"), ("siren", "train"), ("rain", "valid")]
    ):
        clip = 0.1 * rng.normal(size=16000 * (1 + i)) * np.hanning(16000 * (1 + i))
        soundfile.write(str(root / "events" / "audio" / f"{i}.flac"), clip, 16000)
        rows.append(f"audio/{i}.flac,{label},{split},CC0-1.0,g{i}")
    (root / "events" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


TINY = SpatialAudioConfig(name="tiny", description="For tests.", n_train=5, n_valid=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def builder(root, tmp_path_factory):
    return build(TINY, tmp_path_factory.mktemp("tfds"), root)


def test_records_have_the_documented_form(builder):
    again = tfds.builder_from_directory(str(builder.data_path))
    records = list(again.as_data_source("train"))
    assert len(records) == 5 and len(again.as_data_source("valid")) == 2
    assert again.info.features["label_index"].names == ["dog barking", "rain", "siren"]
    for record in records:
        assert record["audio"].dtype == np.int16 and record["audio"].shape == (81920, 2)
        assert record["mel"].dtype == np.float16 and record["mel"].shape == (512, 64, 2)
        assert record["stft"].dtype == np.uint8 and record["stft"].shape == (512, 512, 4)
        assert 0 <= record["azimuth_deg"] < 360
        assert record["label"].decode() == again.info.features["label_index"].names[record["label_index"]]
        assert record["licence"] == b"CC0-1.0" and record["source_file"].startswith(b"audio/")


def test_splits_do_not_share_recordings(builder):
    groups = {s: {r["source_group"] for r in builder.as_data_source(s)} for s in ("train", "valid")}
    assert groups["valid"] == {b"g4"} and not groups["train"] & groups["valid"]


def test_features_are_those_of_the_audio(builder):
    record = builder.as_data_source("train")[2]
    spec = stft(record["audio"][None].astype(np.float32) / 32767)
    filters = mel_filterbank()
    mel = np.asarray(log_mel(spec, filters, AUDIO.mel_floor))[0]
    loud = mel > -6.0  # 16-bit rounding moves quiet bands
    assert loud.mean() > 0.2
    np.testing.assert_allclose(record["mel"][loud], mel[loud], atol=0.05)
    response = spherical_head().spectrum(np.array([record["azimuth_deg"]]))
    features = np.asarray(spatial_features(spec, floor=AUDIO.stft_floor, floor_response=response))[0]
    decoded = decode_stft_features(record["stft"])
    loud = features[..., :2].min(-1) > -4.0
    assert loud.mean() > 0.2
    error = np.abs(decoded - features)[loud]
    assert error[:, :2].max() < LEVEL_ERROR + 0.02
    assert error[:, 2:].max() < COHERENCE_ERROR + 0.02


def test_sound_comes_from_the_azimuth_of_the_record(builder):
    for record in builder.as_data_source("train"):
        energy = np.sum((record["audio"] / 32767.0) ** 2, axis=0)
        side = np.sin(np.deg2rad(record["azimuth_deg"]))
        if abs(side) > 0.2:
            assert np.sign(energy[0] - energy[1]) == np.sign(side)


def test_captions_name_the_direction(builder):
    for record in builder.as_data_source("train"):
        direction = parse_direction(record["caption"].decode())
        assert direction is not None
        difference = abs((direction.azimuth_deg - record["azimuth_deg"] + 180) % 360 - 180)
        assert difference <= 46.0  # the coarsest wording names eighths of the circle


def test_a_record_does_not_depend_on_the_shard_size(builder, root, tmp_path, monkeypatch):
    monkeypatch.setattr("data.spatial_audio.job.SHARD", 2)
    other = build(TINY, tmp_path, root)
    assert len(list(other.data_path.glob("*train.array_record*"))) == 3
    for first, second in zip(builder.as_data_source("train"), other.as_data_source("train"), strict=True):
        assert first["caption"] == second["caption"]
        np.testing.assert_array_equal(first["audio"], second["audio"])


def test_seed_changes_the_scenes(builder, root, tmp_path):
    config = SpatialAudioConfig(name="other", description="For tests.", n_train=5, n_valid=0, seed=1)
    other = build(config, tmp_path, root)
    azimuths = [[r["azimuth_deg"] for r in b.as_data_source("train")] for b in (builder, other)]
    assert azimuths[0] != azimuths[1]
    assert set(other.info.splits) == {"train"}


def test_builder_reads_the_source_folder_from_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DUALSPEC_DATA", str(root))
    builder = Builder(data_dir=str(tmp_path), config=SpatialAudioConfig(name="one", description="x", n_train=1))
    builder.download_and_prepare()
    assert len(builder.as_data_source("train")) == 1


# --- dualspec_jax.preview: here, where a data set is built ---


def test_preview_is_one_page_with_what_the_data_set_holds(builder, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert preview.main([str(builder.data_path), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    records = list(builder.as_data_source("train"))
    assert "spatial_audio/tiny:1.0.0, train" in text and "all 5 scenes, 3 labels" in text
    assert all(html.escape(r["caption"].decode()) in text for r in records)
    assert "CC0-1.0</td><td>5</td>" in text and text.count("<svg") == 3
    sources = re.findall(r'src="([^"]*)"', text)
    assert all(source.startswith("data:") for source in sources)
    sounds = [x.partition(",")[2] for x in sources if x.startswith("data:audio/wav")]
    assert len(sounds) == 5
    for sound, record in zip(sounds, records, strict=True):
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(audio, record["audio"])
    itd = itd_us(records[0]["audio"].astype(np.float32) / 32767)
    assert f"{itd:+.0f} µs" in text
    preview.main([str(builder.data_path), "--out", str(page), "--limit", "2", "--split", "valid"])
    assert "all 2 scenes" in page.read_text(encoding="utf-8")


def test_preview_names_what_is_missing(builder, tmp_path, capsys):
    for argv, message in (
        ([str(tmp_path / "a" / "b" / "1.0.0")], "no data set at"),
        ([str(builder.data_path), "--split", "test"], "split = 'test'"),
        ([str(builder.data_path), "--limit", "0"], "limit = 0"),
        ([str(builder.data_path), "--out", str(tmp_path / "none" / "x.html")], "cannot write"),
    ):
        assert preview.main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


# --- recipes ---

FULL = Recipe(max_sources=3, room_share=0.5, mirror_share=0.5, rooms=RoomRanges(max_taps=2000))


def make_material(root, recipe, n=40, **kwargs):
    recordings = [r for r in read_source(root) if r.split == "train"]
    plan = plan_scenes(recordings, n, "train", 0, recipe.azimuth_step_deg)
    fields = {"clips": Clips(recordings), "heads": [spherical_head()], "labels": ("dog barking", "rain", "siren")}
    return Material(recordings=recordings, plan=plan, split="train", seed=0, recipe=recipe, **fields | kwargs)


@pytest.fixture(scope="module")
def full_scenes(root):
    pytest.importorskip("pyroomacoustics")
    material = make_material(root, FULL)
    return [make_scene(material, i, AUDIO) for i in range(40)]


def test_scenes_say_what_is_in_them(full_scenes):
    counts, rooms, mirrored = [], [], []
    for scene in full_scenes:
        told = json.loads(scene.record["scene_json"])
        sources = told["sources"]
        counts.append(len(sources))
        rooms.append(told["room"] is not None)
        mirrored.append(told["mirrored"])
        assert len({x["label"] for x in sources}) == len(sources) and sources[0]["onset_s"] == 0
        assert np.isclose(sources[0]["azimuth_deg"], scene.record["azimuth_deg"], atol=1e-3)
        for x, y in itertools.combinations([x["azimuth_deg"] for x in sources], 2):
            assert abs((x - y + 180) % 360 - 180) >= 30 - 1e-6
        for x, mono, hrir in zip(sources, scene.mono, scene.hrir, strict=False):
            onset = int(x["onset_s"] * 16000)
            assert not np.any(mono[: max(0, onset - 16)]) and np.any(mono[onset:])
            assert (x["distance_m"] is None) == (told["room"] is None)
            left, right = (hrir[:, :64] ** 2).sum(-1)  # the direct sound
            side = np.sin(np.deg2rad(x["azimuth_deg"]))
            assert abs(side) < 0.3 or np.sign(left - right) == np.sign(side)
        assert not np.any(scene.mono[len(sources) :])
        found = parse_directions(scene.record["caption"])
        in_time = sorted(sources, key=lambda x: x["onset_s"])
        assert len(found) == len(sources)
        for direction, x in zip(found, in_time, strict=True):
            apart = abs((direction.azimuth_deg - x["azimuth_deg"] + 180) % 360 - 180)
            assert apart <= direction.tolerance_deg + 0.06, scene.record["caption"]
    assert set(counts) == {1, 2, 3} and 8 < sum(rooms) < 32 and 8 < sum(mirrored) < 32


def test_mirrored_scenes_are_the_scenes_with_swapped_ears(root):
    plain, mirrored = (make_scene(make_material(root, Recipe(mirror_share=share)), 3, AUDIO) for share in (0.0, 1.0))
    np.testing.assert_array_equal(mirrored.mono, plain.mono)
    np.testing.assert_array_equal(mirrored.hrir, plain.hrir[:, ::-1])
    np.testing.assert_array_equal(mirrored.response, plain.response[:, ::-1])
    assert mirrored.record["azimuth_deg"] == pytest.approx(360 - plain.record["azimuth_deg"], abs=1e-4)


def test_a_head_is_drawn_for_every_scene(root):
    heads = [spherical_head(), dataclasses.replace(spherical_head(radius_m=0.1), name="large sphere")]
    material = make_material(root, Recipe(), heads=heads)
    names = [json.loads(make_scene(material, i, AUDIO).record["scene_json"])["head"] for i in range(16)]
    assert set(names) == {"rigid sphere", "large sphere"}


def test_grid_has_every_multiple_of_its_step_as_often():
    plan = plan_scenes(make_recordings({"a": 3, "b": 2}), 1200, "train", 0, 30.0)
    values, counts = np.unique(plan.azimuth_deg, return_counts=True)
    assert values.tolist() == list(range(0, 360, 30)) and counts.min() > 90


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"azimuth_step_deg": 7.0}, "recipe.azimuth_step_deg = 7.0"),
        ({"max_sources": 4}, "recipe.max_sources = 4"),
        ({"level": "peak"}, "recipe.level = 'peak'"),
        ({"room_share": 1.5}, "recipe.room_share = 1.5"),
    ],
)
def test_bad_recipes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


FIRST_SCENES = (  # of the data set that the embedded model was trained on
    ("At 221.3 degrees: waves roaring.", "audio/sea_waves__4-204618-A.flac"),
    ("the cow mooing, at azimuth 57", "audio/cow_mooing__mods-cow_moo_02.flac"),
    ("An angry dog is barking (off at twelve o'clock).", "audio/dog_barking__2-117271-A.flac"),
    ("raindrops coming down in my right ear", "audio/rain__4-163264-A.flac"),
)


@pytest.mark.skipif("DUALSPEC_DATA" not in os.environ, reason="needs the recordings of the embedded model")
def test_the_first_recipe_still_makes_the_first_scenes():
    config = Builder.builder_configs["spatial_audio_6k"]
    recordings = [r for r in read_source(os.environ["DUALSPEC_DATA"]) if r.split == "train"]
    plan = plan_scenes(recordings, config.n_train, "train", config.seed, config.recipe.azimuth_step_deg)
    labels = sorted({r.label for r in recordings})
    material = Material(
        recordings, Clips(recordings), [spherical_head()], labels, plan, "train", config.seed, config.recipe
    )
    for i, (caption, file) in enumerate(FIRST_SCENES):
        record = make_scene(material, i, AUDIO).record
        assert (record["caption"], record["source_file"]) == (caption, file) and "scene_json" not in record


# --- shards, workers, interruptions ---


def digests(builder):
    return json.loads(Path(builder.data_dir, "build.json").read_text())["sha256"]


def test_the_digest_is_that_of_the_stored_records(builder):
    for split, told in digests(builder).items():
        raw = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        digest = hashlib.sha256(b"".join(hashlib.sha256(raw[i]).digest() for i in range(len(raw))))
        assert told == digest.hexdigest()


def test_an_interrupted_build_goes_on_and_ends_the_same(builder, root, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD", 2)
    write, made = jobs.write_shard, []

    def stop_at_the_third(folder, split, number):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((split, number))
        return write(folder, split, number)

    monkeypatch.setattr(jobs, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(TINY, tmp_path, root)
    config = tmp_path / "spatial_audio" / "tiny"
    assert not (config / "1.0.0").exists()  # nothing to read yet
    (config / "shards.1.0.0" / "train-00002.99.partial").write_bytes(b"of a killed worker")
    (config / "shards.1.0.0" / "train-00002.array_record").write_bytes(b"without its JSON file it does not count")
    monkeypatch.setattr(jobs, "write_shard", lambda *shard: (made.append(shard[1:]), write(*shard))[1])
    again = build(TINY, tmp_path, root)
    assert made == [("train", 0), ("train", 1), ("train", 2), ("valid", 0)]
    assert digests(again) == digests(builder)
    assert [path.name for path in config.iterdir()] == ["1.0.0"]


def test_other_inputs_start_anew(root, tmp_path):
    job = jobs.Job("x", {"train": 4}, tuple(read_source(root)), ("dog barking",), (), 0, Recipe(), 2)
    jobs.open_folder(tmp_path / "job", job)
    kept = tmp_path / "job" / "train-00000.json"
    kept.write_text("{}")
    jobs.open_folder(tmp_path / "job", job)
    assert kept.exists()
    jobs.open_folder(tmp_path / "job", dataclasses.replace(job, seed=1))
    assert not kept.exists()


def test_a_full_disk_is_one_clear_line(root, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert main(["--config", "spatial_audio_1k", "--data_dir", str(tmp_path), "--manual_dir", str(root)]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "1100 scenes need about 1.1 GB" in error[0] and "0.0 GB are free" in error[0]
    assert not (tmp_path / "spatial_audio" / "spatial_audio_1k" / "1.0.0").exists()


def test_licences_are_kept_apart(root, tmp_path):
    with pytest.raises(ValueError, match="no clip has one of them"):
        build(TINY, tmp_path, root, licences=("CC-BY",))
    one = SpatialAudioConfig(name="one", description="For tests.", n_train=1)
    build(one, tmp_path, root, licences=("CC0",))
    with pytest.raises(ValueError, match="was built with 'CC0'; pass --overwrite"):
        build(one, tmp_path, root)


def test_labels_that_name_a_direction_are_refused(tmp_path):
    source = make_source(tmp_path / "source")
    table = source / "events" / "metadata.csv"
    table.write_text(table.read_text().replace("siren", "siren on the left"))
    with pytest.raises(ValueError, match="label = 'siren on the left': it names a direction"):
        build(TINY, tmp_path / "tfds", source)


SCRIPT = """
import dataclasses, sys
from data.spatial_audio import build, job
from data.spatial_audio.spatial_audio_dataset_builder import SpatialAudioConfig
if __name__ == "__main__":
    job.SHARD = 3
    config = SpatialAudioConfig(name="killed", description="x", n_train=15, n_valid=2)
    build.build(config, sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
"""


def start_build(tmp_path, out, root, workers):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, script, out, root, str(workers)], env=environment)


@pytest.mark.slow
def test_killed_builds_end_the_same_with_one_and_three_workers(root, tmp_path):
    found = []
    for workers, kills in ((1, 0), (3, 2)):
        out = tmp_path / str(workers)
        for seconds in [15 + 10 * i for i in range(kills)]:
            process = start_build(tmp_path, out, root, workers)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert start_build(tmp_path, out, root, workers).wait() == 0
        folder = out / "spatial_audio" / "killed" / "1.0.0"
        found.append(json.loads((folder / "build.json").read_text())["sha256"])
    assert found[0] == found[1] and set(found[0]) == {"train", "valid"}


@pytest.mark.slow
def test_beam_builds_the_same(builder, root, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(jobs, "SHARD", 2)
    assert digests(build(TINY, tmp_path, root, beam=[])) == digests(builder)


def make_recordings(counts):
    return [
        Recording(path=None, file=f"{label}{i}", label=label, split="train", licence="", source_group="")
        for label, n in counts.items()
        for i in range(n)
    ]


def test_plan_balances_labels_and_recordings():
    recordings = make_recordings({"a": 1, "b": 4, "c": 25})
    plan = plan_scenes(recordings, 800, "train", 0)
    labels = np.array([r.label for r in recordings])[plan.recording]
    assert [np.sum(labels == label) for label in "abc"] == [100, 200, 500]  # 1 : 2 : 5, the square roots
    per_recording = np.bincount(plan.recording)
    assert set(per_recording[1:5]) == {50} and set(per_recording[5:]) == {20}


def test_plan_spreads_azimuths_over_the_circle_for_every_label():
    plan = plan_scenes(make_recordings({"a": 1, "b": 4, "c": 25}), 800, "train", 3)
    labels = np.array(["a", *["b"] * 4, *["c"] * 25])[plan.recording]
    for chosen, bins in ((labels != "", 72), (labels == "a", 24), (labels == "b", 36)):
        counts = np.histogram(plan.azimuth_deg[chosen], bins, (0, 360))[0]
        assert counts.min() >= 0.5 * counts.mean() and counts.max() <= 1.6 * counts.mean()
    assert plan.azimuth_deg.min() >= 0 and plan.azimuth_deg.max() < 360
    np.testing.assert_allclose(plan.azimuth_deg * 10, np.round(plan.azimuth_deg * 10), atol=1e-3)


def test_command_line_reports_bad_input_in_one_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DUALSPEC_DATA", raising=False)
    data_dir = ["--data_dir", str(tmp_path)]
    for argv, message in (
        ([*data_dir], "no source folder"),
        ([*data_dir, "--manual_dir", str(tmp_path)], "is no source folder"),
        ([*data_dir, "--manual_dir", str(root), "--config", "none"], "it must be one of spatial_audio_1k"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_split_without_clips_is_an_error(tmp_path):
    source = make_source(tmp_path / "source")
    table = source / "events" / "metadata.csv"
    table.write_text(table.read_text().replace(",valid,", ",train,"))
    with pytest.raises(ValueError, match="no usable clip has split = 'valid'"):
        build(TINY, tmp_path / "tfds", source)
