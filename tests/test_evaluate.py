import csv
import json
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from judges import save_random_classifier, save_random_localiser

from dualspec_jax import config as config_lib
from dualspec_jax import evaluate, networks, report
from dualspec_jax.bundle import save_bundle
from dualspec_jax.clip_judge import ClipJudge
from dualspec_jax.config_rules import validate
from dualspec_jax.event_metrics import CLASSIFIER, load_classifier, save_classifier
from dualspec_jax.prompt_set import LABELS
from dualspec_jax.real_scenes import load_scenes, recorded_labels
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.scene import render
from dualspec_jax.tokenizer import train_tokenizer

ALL_LABELS = (*LABELS, "zebra")


def tiny_config():
    c = config_lib.default()
    c.audio.n_samples, c.audio.n_frames, c.data.crop_frames = 10240, 64, 32
    c.mel_vae.update(channels=(8, 8), norm_groups=4, latent_channels=2)
    c.stft_vae.update(channels=(8, 8, 8), norm_groups=4, latent_channels=2)
    c.text.update(vocab_size=800, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, max_length=16)
    c.unet.update(channels=(16, 16), attention=(False, True), head_dim=8, norm_groups=4)
    c.diffusion.num_steps = 10
    c.sample.update(steps=2, griffin_lim_iters=2)
    c.classifier.hidden = (8, 8)
    c.localiser.update(azimuths=36, hidden=(8,))
    validate(c)
    return c


@pytest.fixture(autouse=True)
def _no_compile_cache(monkeypatch):
    monkeypatch.setattr("dualspec_jax.compile_cache.enable", lambda: None)


def _random_params(module, *inputs):
    """Return parameters of the right shapes without compiling an initialiser."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a random tiny bundle, a random classifier, an HRTF file and eleven short recordings."""
    folder, c = tmp_path_factory.mktemp("evaluate"), tiny_config()
    key = jax.random.key(0)
    tokenizer = train_tokenizer(["a dog barking at 10 o'clock", "rain"], c.text.vocab_size)
    params = {}
    for name, bands in (("mel_vae", c.audio.n_mels), ("stft_vae", c.audio.n_bins)):
        x = jnp.zeros((1, 32, bands, c[name].in_channels))
        params[name] = _random_params(networks.make_vae(c[name]), x, key)
    ids = jnp.zeros((1, c.text.max_length), jnp.int32)
    params["text_encoder"] = _random_params(networks.make_text_encoder(c.text), ids, ids == 0)
    shape, one = networks.latent_shape(c), jnp.zeros(1)
    text = jnp.zeros((1, c.text.max_length, c.text.d_model))
    x = jnp.zeros((1, *shape))
    params["unet"] = _random_params(networks.make_unet(c.unet), x, one, text, ids == 0, one, one > 0)
    backend = tokenizer.backend.to_str()
    save_bundle(folder / "bundle", c, params, backend, np.zeros(shape[2]), np.ones(shape[2]), LABELS, "card")

    save_random_classifier(folder / "classifier.safetensors", c, ALL_LABELS)
    save_random_localiser(folder / "localiser.safetensors", c)

    head = spherical_head()
    fields = {name: getattr(head, name) for name in ("hrir", "azimuth_deg", "elevation_deg", "sample_rate")}
    np.savez(folder / "head.npz", **fields)

    (folder / "data" / "events").mkdir(parents=True)
    with open(folder / "data" / "events" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split", "licence"])
        for i, label in enumerate((*LABELS, "rain")):
            noise = 0.1 * np.random.default_rng(i).standard_normal(8000)
            soundfile.write(folder / "data" / "events" / f"{i}.wav", noise, 16000)
            writer.writerow([f"{i}.wav", label, "valid" if i < 10 else "train", "CC0"])
    return folder


def run(place, out, *more):
    return evaluate.main(
        ["--bundle", f"{place}/bundle", "--data", f"{place}/data", "--hrtf", f"{place}/head.npz", "--out", str(out)]
        + ["--classifier", f"{place}/classifier.safetensors", "--localiser", f"{place}/localiser.safetensors"]
        + ["--batch-size", "2", "--limit", "3", *more]
    )


def test_a_tiny_bundle_is_measured_and_a_rerun_generates_nothing(place, tmp_path, capsys, monkeypatch):
    assert run(place, tmp_path, "--guidance", "2,1.5", "--seed", "5") == 0
    table = capsys.readouterr().out
    first = json.loads((tmp_path / "report.json").read_text())
    names = ["real", "resynthesis", "round_trip", "round_trip_plain", "numeric", "words", "cascade"]
    assert list(first["systems"]) == names
    for name in names:
        assert name in table
        assert first["systems"][name]["n"] == len(first["systems"][name]["clips"]) == 3
    assert first["settings"]["guidance_mel"] == 2.0 and first["settings"]["seed"] == 5
    assert first["prompt_set"]["version"] == 1 and len(first["prompt_set"]["rows"]["words"]) == 120
    real = first["systems"]["real"]["summary"]
    assert real["itd_error_us"]["value"] < 60.0 and real["lateral_mae_deg"]["value"] < 2.0
    assert real["itd_error_us"] and first["systems"]["cascade"]["summary"]["lateral_mae_deg"]["value"] < 5.0
    assert first["event_sets"]["words"]["n_real"] == 3 and "frechet" in first["event_sets"]["words"]
    assert "frechet_extrapolated" not in first["event_sets"]["words"]  # of 3 clips: not told
    assert 0.0 <= first["systems"]["words"]["summary"]["network_confidence_percent"]["value"] <= 100.0
    assert "log_mel_l1" in first["systems"]["round_trip"]["summary"]
    assert first["systems"]["resynthesis"]["summary"]["itd_shift_us"]["value"] < 30.0
    for name in ("azimuth.png", "polar.png", "events.png", "spectrograms.png"):
        assert (tmp_path / name).stat().st_size > 5000
    clip = first["systems"]["words"]["clips"][0]
    with wave.open(str(tmp_path / "wav" / clip["wav"])) as w:
        assert (w.getnchannels(), w.getnframes()) == (2, 10240)

    monkeypatch.setattr("dualspec_jax.generate.Generator.__call__", None)  # a call would now fail
    assert run(place, tmp_path, "--guidance", "2,1.5", "--seed", "5", "--rows", "words,numeric") == 0
    second = json.loads((tmp_path / "report.json").read_text())
    assert list(second["systems"]) == ["numeric", "words"]
    for clip in first["systems"]["words"]["clips"]:
        clip.pop("event_kl")  # to the real clips, which the second run does not look at
    assert second["systems"]["words"]["clips"] == first["systems"]["words"]["clips"]
    assert second["seconds_per_clip"] == first["seconds_per_clip"]


def test_text_only_makes_other_clips_and_the_solver_is_told(place, tmp_path):
    clips, solvers = [], []
    for options in ([], ["--text-only"], ["--solver", "ddim"]):
        assert run(place, tmp_path, "--rows", "words", "--limit", "1", *options) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["settings"]["text_only"] is ("--text-only" in options)
        clips.append((tmp_path / "wav" / report["systems"]["words"]["clips"][0]["wav"]).read_bytes())
        solvers.append(report["settings"]["solver"])
    assert clips[0] != clips[1]
    assert solvers == ["unipc", "unipc", "ddim"]


def test_rooms_make_the_real_clips_less_coherent(place, tmp_path):
    coherence = []
    for options in ([], ["--rooms"]):
        assert run(place, tmp_path, "--rows", "real", *options) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["settings"]["rooms"] is bool(options)
        coherence.append(report["systems"]["real"]["summary"]["coherence"]["value"])
    assert coherence[1] < coherence[0] - 0.05


def test_a_folder_of_files_is_measured_and_mono_is_refused(place, tmp_path, capsys):
    wavs, head = tmp_path / "wavs", spherical_head()
    wavs.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(10240).astype(np.float32)
    for azimuth in (60, 210, 300):
        soundfile.write(wavs / f"hiss_true{azimuth}_0.wav", render(noise, azimuth, head), 16000)
    assert run(place, tmp_path / "out", "--wav-dir", f"{wavs}") == 0
    report_ = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report_["systems"]) == ["files"]
    summary = report_["systems"]["files"]["summary"]
    assert summary["azimuth_mae_deg"]["value"] < 2.0 and summary["itd_error_us"]["value"] < 20.0
    assert "event_all_percent" not in summary  # nobody said what it should be
    assert not (tmp_path / "out" / "events.png").exists()
    capsys.readouterr()
    soundfile.write(wavs / "a_true0.wav", noise, 16000)
    assert run(place, tmp_path / "out", "--wav-dir", f"{wavs}", "--limit", "9") == 2
    assert "has 1 channel: it must have 2 (stereo)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "{p}/nowhere"], "no config.json there"),
        (["--data", "{p}/nowhere"], "no such folder"),
        (["--data", "{p}"], "no events/metadata.csv there"),
        (["--hrtf", "{p}/nowhere.sofa"], "does not exist"),
        (["--classifier", "{p}/nowhere"], "no such file"),
        (["--classifier", "{p}/head.npz"], "not a readable safetensors file"),
        (["--classifier", "{p}/bundle/mel_vae.safetensors"], "its header holds no labels"),
        (["--localiser", "{p}/classifier.safetensors"], "its header holds no azimuths"),
        (["--wav-dir", "{p}/nowhere"], "no such folder"),
        (["--azimuths", "{p}/x.csv"], "goes with --wav-dir"),
        (["--clap", "{p}/nowhere"], "give the folder of a CLAP model"),
        (["--out", "{p}/head.npz"], "cannot be made"),
        (["--rooms", "--rows", "real,words"], "goes with rows real and round_trip, not with words"),
        (["--limit", "0"], "must be at least 1"),
        (["--batch-size", "0"], "must be at least 1"),
        (["--seed", "-1"], "must be in [0, 2^31]"),
        (["--steps", "99", "--rows", "words"], "steps = 99: must be in [1, 10]"),
    ],
)
def test_mistake_is_one_line_and_exit_2(place, tmp_path, capsys, arguments, message):
    assert run(place, tmp_path / "out", *(a.format(p=place) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")


@pytest.mark.parametrize("arguments", [["--rows", "real,wrods"], ["--rows", ""], ["--guidance", "x"], ["--limit", "x"]])
def test_unreadable_flags_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_missing_data_and_hrtf_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("DUALSPEC_DATA", raising=False)
    assert evaluate.main(["--out", str(tmp_path)]) == 2
    assert "$DUALSPEC_DATA" in capsys.readouterr().err
    assert evaluate.main(["--out", str(tmp_path), "--rows", "words"]) == 2
    assert "hrtf: give --hrtf FILE" in capsys.readouterr().err


def test_classifier_comes_back(place):
    classifier = load_classifier(place / "classifier.safetensors")
    assert classifier.labels == ALL_LABELS and classifier.model.hidden == (8, 8)
    logits, embedding = classifier(jnp.zeros((1, 64, 64, 2)))
    assert logits.shape == (1, 11) and embedding.shape == (1, 8)
    with pytest.raises(ValueError, match="labels: 2 of them, but the classifier has 11 outputs"):
        save_classifier(place / "x.safetensors", classifier.params, ("a", "b"), tiny_config().classifier, 100.0)


def test_the_package_ships_a_classifier_of_at_most_8_mb():
    assert CLASSIFIER.stat().st_size <= 8e6
    assert set(LABELS) <= set(load_classifier().labels)


def test_scenes_are_the_valid_recordings_all_around_and_seeded(place):
    scenes = load_scenes(place / "data", LABELS, 10240, seed=0)
    assert [s.label for s in scenes[::3]] == list(LABELS) and [s.index for s in scenes] == list(range(30))
    assert np.diff(np.sort([s.azimuth_deg for s in scenes])).max() < 30.0
    again, other = (load_scenes(place / "data", LABELS, 10240, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again[4].mono, scenes[4].mono)
    assert other[4].azimuth_deg != scenes[4].azimuth_deg
    assert recorded_labels(place / "data", ("zebra", *LABELS[::-1])) == list(LABELS[::-1])
    with pytest.raises(ValueError, match="has no recording of 'zebra' in split valid"):
        load_scenes(place / "data", ALL_LABELS, 10240, seed=0)


def test_judge_on_clips_of_known_direction_and_silence(place):
    head, audio = spherical_head(), tiny_config().audio
    judge = ClipJudge(head, audio, load_classifier(place / "classifier.safetensors"), LABELS, batch_size=4)
    noise = 0.1 * np.random.default_rng(0).standard_normal(10240).astype(np.float32)
    clips = np.stack([render(noise, 60.0, head), render(noise, 120.0, head), 1e-3 * render(noise, 60.0, head)])
    right, behind, silent = judge(clips, [60.0, 60.0, 60.0], ["rain"] * 3)
    assert right["azimuth_error_deg"] < 1.0 and right["front_back"] == 0.0 and right["itd_error_us"] < 15.0
    assert right["ild_error_db"] < 0.5 and right["target_itd_us"] > 300.0 and right["silent"] == 0.0
    assert behind["azimuth_error_deg"] > 55.0 and behind["front_back"] == 1.0 and behind["lateral_error_deg"] < 5.0
    assert silent["silent"] == 1.0 and silent["azimuth_error_deg"] == 90.0 and silent["event_set"] == 0.0
    assert silent["itd_error_us"] == pytest.approx(abs(silent["target_itd_us"]))
    with pytest.raises(ValueError, match="does not know the label 'yak'"):
        ClipJudge(head, audio, load_classifier(place / "classifier.safetensors"), ("yak",))


def test_metrics_move_the_right_way(place):
    """Each change of a clip moves what it should, and leaves the rest."""
    head, audio, c = spherical_head(), tiny_config().audio, tiny_config()
    judge = ClipJudge(head, audio, load_classifier(place / "classifier.safetensors"), LABELS, batch_size=8)
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(10240).astype(np.float32)
    clip = render(noise, 60.0, head)
    late = np.stack([clip[:, 0], np.roll(clip[:, 1], 4)], axis=-1)  # the right ear another 250 us later
    diffuse = clip + 0.5 * np.std(clip) * rng.standard_normal(clip.shape).astype(np.float32)
    clips = np.stack([clip, clip[:, ::-1], late, diffuse, render(noise, 70.0, head)])
    plain, swapped, late, diffuse, rotated = judge(clips, [60.0] * 5, ["rain"] * 5)
    same = lambda a, b, *fields, rel=1e-3: all(a[f] == pytest.approx(b[f], rel=rel, abs=1e-3) for f in fields)

    assert swapped["measured_deg"] == pytest.approx(300.0, abs=1.0) and swapped["same_side"] == 0.0
    assert swapped["itd_us"] == pytest.approx(-plain["itd_us"], abs=0.1)
    assert swapped["ild_bands_db"] == pytest.approx([-x for x in plain["ild_bands_db"]], abs=1e-3)
    assert same(swapped, plain, "coherence", "peak_dbfs", "silent")
    np.testing.assert_allclose(swapped["probabilities"], plain["probabilities"], atol=1e-4)

    assert late["itd_us"] == pytest.approx(plain["itd_us"] + 250.0, abs=5.0)
    assert same(late, plain, "ild_db", "peak_dbfs", rel=0.01)

    assert diffuse["coherence"] < plain["coherence"] - 0.1
    assert abs(diffuse["itd_us"] - plain["itd_us"]) < 30.0

    assert rotated["azimuth_error_deg"] == pytest.approx(10.0, abs=1.0) and rotated["within_5"] == 0.0
    assert rotated["within_15"] == rotated["same_side"] == 1.0 and rotated["front_back"] == 0.0
    assert same(rotated, plain, "coherence", "silent", rel=0.01)
    assert c.audio.sample_rate == 16000


def test_wording_spread_is_that_of_styles_of_one_request():
    rows = [("rain", 0.0, "doa", 10.0), ("rain", 0.0, "clock", 350.0), ("rain", 90.0, "doa", 90.0)]
    rows += [("rooster", 0.0, "doa", 5.0), ("rooster", 0.0, "general", 5.0), ("rooster", 0.0, "clock", float("nan"))]
    rows += [("dog", 60.0, "doa", 60.0), ("dog", 60.0, "clock", 120.0)]
    rows += [("cat", 180.0, "doa", 178.0), ("cat", 180.0, "clock", 2.0)]  # no interaural cue tells these two apart
    names = ("label", "asked_deg", "style", "measured_deg")
    spreads = report.wording_spreads([dict(zip(names, row, strict=True)) for row in rows])
    spreads = [spread["wording_spread_deg"] for spread in spreads]
    assert spreads[0] == pytest.approx(10.0, rel=0.01)
    assert spreads[1] == pytest.approx(0.0, abs=1e-4)
    assert spreads[2] == pytest.approx(30.0, rel=0.1)
    assert spreads[3] == pytest.approx(0.0, abs=1e-4)


def test_summary_of_known_numbers_and_its_interval():
    rng = np.random.default_rng(0)
    records = [
        {"unit": i, "azimuth_error_deg": float(x), "silent": float(i < 10)} for i, x in enumerate(rng.normal(5, 1, 100))
    ]
    summary = report.summarise(records, report.COLUMNS)
    assert summary == report.summarise(records, report.COLUMNS) != report.summarise(records, report.COLUMNS, seed=1)
    assert summary["silent_percent"]["value"] == 10.0 and "itd_error_us" not in summary
    mae = summary["azimuth_mae_deg"]
    assert mae["high"] - mae["low"] == pytest.approx(2 * 1.96 * 0.1, rel=0.2)  # of the mean of 100 normal numbers
    threes = [
        r | {"unit": i // 3} for i, r in enumerate([r for r in records for _ in range(3)])
    ]  # each clip three times
    wide = report.summarise(threes, report.COLUMNS)["azimuth_mae_deg"]
    assert wide["high"] - wide["low"] == pytest.approx(2 * 1.96 * 0.1, rel=0.2)  # no surer than without the copies
    lines = report.format_table({"a": summary, "b": {}}, {"a": 100, "b": 0}, report.COLUMNS).splitlines()
    assert lines[0].split()[:2] == ["system", "n"] and lines[2].split() == ["b", "0", "-", "-", "-"]
    assert len({len(line) for line in lines[:3]}) == 1


def test_report_is_strict_json():
    assert json.loads(report.to_json({"a": [float("nan"), np.float32(1.5)], 2: np.int64(3)})) == {
        "a": [None, 1.5],
        "2": 3,
    }


def test_copying_is_measured_against_the_training_recordings(place, tmp_path):
    assert run(place, tmp_path, "--rows", "real", "--copying") == 0
    clips = json.loads((tmp_path / "report.json").read_text())["systems"]["real"]["clips"]
    assert len(clips) == 3 and all(-1.0 < clip["copy_similarity"] < 0.99 for clip in clips)  # other noise than there


def test_copying_needs_the_recordings(place, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DUALSPEC_DATA", raising=False)
    command = ["--hrtf", f"{place}/head.npz", "--out", str(tmp_path), "--rows", "words", "--copying"]
    assert evaluate.main(command) == 2
    assert "--copying needs --data" in capsys.readouterr().err
