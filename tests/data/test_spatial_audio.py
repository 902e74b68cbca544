import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from data.sources import Recording
from data.spatial_audio.build import build, main
from data.spatial_audio.scenes import plan_scenes
from data.spatial_audio.spatial_audio_dataset_builder import Builder, SpatialAudioConfig
from dualspec_jax.config import default
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.coding import COHERENCE_ERROR, LEVEL_ERROR, decode_stft_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.direction import parse_direction
from dualspec_jax.spatial.hrtf import spherical_head

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
