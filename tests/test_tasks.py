"""The whole path on synthetic clips and a tiny model: data set, five trainings, latents, bundle, sound."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from tiny import tiny_config

from data.clip_bank import write_bank
from data.spatial_audio.build import build
from data.spatial_audio.spatial_audio_dataset_builder import SpatialAudioConfig
from dualspec_jax import sample
from dualspec_jax.bundle import load_bundle
from dualspec_jax.checkpoint import load_params
from dualspec_jax.encode import encode_split
from dualspec_jax.event_metrics import load_classifier
from dualspec_jax.export import export
from dualspec_jax.export_judges import export_judges
from dualspec_jax.latents import load_latents
from dualspec_jax.loop import train
from dualspec_jax.network_localiser import load_localiser
from dualspec_jax.tasks import make_model, make_task
from dualspec_jax.vae_tasks import load_vae
from dualspec_jax.wav import read_wav

ROOT = Path(__file__).resolve().parents[1]
FIRST = (  # before latents
    "text_encoder", "reader", "mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "vocoder", "classifier",
    "localiser", "listener",
)  # fmt: skip
LAST = ("diffusion", "event_guide")  # on latents


@pytest.fixture(scope="module")
def config():
    c = tiny_config()
    c.audio.n_samples, c.audio.n_frames = 81920, 512  # the size the data set is built in
    c.data.dataset = "spatial_audio/tiny:1.0.0"
    c.text.event_codes = 200
    c.unet.condition_rows = True
    c.diffusion.update(words_dropped=0.5, static_weight=1.0)
    return c


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    (root / "events" / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["file,label,split,licence,source_group,title,author,source_url,collection"]
    for i, (label, split) in enumerate([("dog barking", "train"), ("rain", "train"), ("rain", "valid")]):
        soundfile.write(str(root / "events" / "audio" / f"{i}.flac"), 0.1 * rng.normal(size=16000), 16000)
        rows.append(f"audio/{i}.flac,{label},{split},CC0-1.0,g{i},title|{i},someone,https://example.org/{i},made")
    (root / "events" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def workdir(config, source, tmp_path_factory) -> Path:
    """Train every task two steps, in the order that the parts need each other."""
    path = tmp_path_factory.mktemp("work")
    tiny = SpatialAudioConfig(name="tiny", description="For tests.", n_train=6, n_valid=4)
    build(tiny, path / "tfds", source)
    for task in LAST:
        with pytest.raises(ValueError, match="encode"):
            make_task(config, task, path)
    for task in FIRST:
        train(config, make_task(config, task, path), path)
    for split in ("train", "valid"):
        encode_split(config, path, split, batch_size=4)
    for task in LAST:
        train(config, make_task(config, task, path), path)
    return path


def test_each_task_logs_finite_losses_and_draws(workdir):
    for task in (*FIRST, *LAST):
        lines = [json.loads(line) for line in (workdir / task / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2]
        assert all(np.isfinite(value) for line in lines for value in line.values())
        assert any(name.startswith("valid/") for line in lines for name in line)
    for task in ("mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "vocoder", "diffusion"):
        assert list((workdir / task / "pictures").glob("*_2.png"))


def test_fewer_clips_than_pictures_are_drawn_too(config, workdir):
    task = make_task(config, "diffusion", workdir)
    batch = next(iter(task.make_batches("valid", False, 0)))
    two = {name: value[:2] for name, value in batch.items()}
    pictures = task.pictures(load_params(workdir / "diffusion")[0], two, jax.random.key(0))
    assert sorted(pictures) == ["sample_0", "sample_1"]


def test_latents_are_the_encoders_and_encoding_again_changes_nothing(config, workdir):
    folder = workdir / "latents" / "train"
    latents = np.load(folder / "latents-00000.npy")
    assert latents.shape == (6, 128, 16, 8) and np.isfinite(latents).all()
    meta = json.loads((folder / "meta.json").read_text())
    np.testing.assert_allclose(meta["std"], latents.astype(np.float64).std((0, 1, 2)), rtol=1e-4)
    encode_split(config, workdir, "train", batch_size=4)
    assert np.array_equal(np.load(folder / "latents-00000.npy"), latents)


def test_encoding_in_other_batches_gives_the_same_latents(config, workdir):
    folder = workdir / "latents" / "valid"
    before = np.load(folder / "latents-00000.npy")
    (folder / "shard-00000.json").unlink()
    (folder / "meta.json").unlink()
    encode_split(config, workdir, "valid", batch_size=3)
    np.testing.assert_allclose(np.load(folder / "latents-00000.npy"), before, atol=2e-2)  # float16 of float32 sums


@pytest.mark.parametrize("name", ["mel_vae", "text_encoder", "localiser", "event_guide", "listener", "diffusion"])
def test_a_task_reads_the_rows_of_its_host(config, workdir, name):
    task = make_task(config, name, workdir)
    whole, *parts = (next(iter(task.make_batches("train", True, 0, shard))) for shard in ((0, 1), (0, 2), (1, 2)))
    for field, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[field] for part in parts]), value)


def test_pipeline_is_timed_against_the_train_step(config, workdir, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from ml_collections import ConfigDict\n\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r}, convert_dict=True)\n"
    )
    spec = importlib.util.spec_from_file_location("data_speed", ROOT / "benchmarks" / "data_speed.py")
    data_speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data_speed)
    rows = []
    data_speed.measure_pipeline(rows, str(experiment), workdir, 2)
    (row,) = rows
    assert 0 < row["data_wait_share"] < 1 and row["step_with_data_s"] > 0
    assert row["ratio"] == pytest.approx(row["batches_per_s"] / row["steps_per_s"])


def test_latents_in_shards_made_by_two_hosts_are_the_same(config, workdir, monkeypatch):
    folder = workdir / "latents" / "train"
    whole, meta = np.load(folder / "latents-00000.npy"), json.loads((folder / "meta.json").read_text())
    config = config.copy_and_resolve_references()
    config.data.latents_dir = str(workdir / "two")
    monkeypatch.setattr("dualspec_jax.encode.SHARD", 2)
    two = encode_split(config, workdir, "train", 2, shard=(1, 2))
    assert sorted(p.name for p in two.glob("latents*")) == ["latents-00001.npy"] and not (two / "meta.json").exists()
    encode_split(config, workdir, "train", 2, shard=(0, 2))
    latents = load_latents(two)
    assert len(latents) == 6 and latents.labels == ("dog barking", "rain")
    np.testing.assert_allclose(np.stack([latents.latent(i) for i in range(6)]), whole, atol=2e-2)
    again = json.loads((two / "meta.json").read_text())
    np.testing.assert_allclose(again["mean"], meta["mean"], atol=1e-3)
    np.testing.assert_allclose(again["std"], meta["std"], rtol=1e-3)


@pytest.mark.parametrize(("field", "shape"), [("mel", (64, 2)), ("stft", (512, 4))])
def test_decoder_has_its_own_batch_size_and_leaves_the_encoder(config, workdir, field, shape):
    config, vae, stage = config.copy_and_resolve_references(), f"{field}_vae", f"{field}_decoder"
    config.train[stage].batch_size = 3
    batch = next(iter(make_task(config, stage, workdir).make_batches("train", True, 0)))
    assert {name: value.shape for name, value in batch.items()} == {field: (3, 32, *shape)}
    first, second = load_params(workdir / vae)[0], load_vae(workdir, vae)
    same = lambda name: np.array_equal(first[name]["conv_in"]["kernel"], second[name]["conv_in"]["kernel"])
    assert same("encoder") and not same("decoder")


def test_diffusion_trains_on_scenes_rendered_on_the_device(config, source, workdir):
    config = config.copy_and_resolve_references()
    config.feeding.source, config.feeding.clip_bank = "render", str(write_bank(source, workdir / "bank"))
    batches = iter(make_task(config, "diffusion", workdir).make_batches("train", True, 0))
    batch = next(batches)
    assert {k: v.shape for k, v in batch.items()} == {
        "latent": (4, 128, 16, 8), "token_ids": (4, 24), "text_mask": (4, 24), "azimuth_deg": (4,), "has_azimuth": (4,)
    }  # fmt: skip
    latents = load_latents(workdir / "latents" / "train")
    cached = np.stack([latents.latent(i) for i in range(6)])
    # Other scenes of the same clips through the same encoders: about the same mean and spread of every channel.
    assert np.abs(np.asarray(batch["latent"]).mean((0, 1, 2)) - cached.mean((0, 1, 2))).max() < cached.std()


def test_bundle_holds_the_averaged_weights_and_makes_a_sound(config, source, workdir, tmp_path, monkeypatch):
    digest = export(config, workdir, tmp_path / "bundle", source)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.digest == digest and bundle.labels == ("dog barking", "rain")
    trained = load_params(workdir / "diffusion")[0]["conv_in"]["kernel"]
    np.testing.assert_allclose(bundle.params["unet"]["conv_in"]["kernel"], trained, atol=1e-3)
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert [bundle.steps.pop(vae) for vae in ("mel_vae", "stft_vae")] == [4, 4]  # of both stages
    assert bundle.steps == dict.fromkeys(("vocoder", "text_encoder", "reader", "event_guide", "listener", "unet"), 2)
    assert card.count(" M | 2 |") == 6 and card.count(" M | 4 |") == 2
    assert "title/0" in card and "someone" in card and "audio/2.flac" not in card  # valid recordings did not train it
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--prompt", "rain on my left", "--bundle", "bundle", "--out", "rain.wav"]) == 0
    assert read_wav(tmp_path / "rain.wav")[0].shape == (81920, 2)


def test_judges_are_exported_with_labels_and_temperature(workdir, tmp_path):
    paths = export_judges(workdir, tmp_path / "judges")
    assert [path.name for path in paths] == ["classifier.safetensors", "localiser.safetensors"]
    classifier, localiser = load_classifier(paths[0]), load_localiser(paths[1])
    assert classifier.labels == ("dog barking", "rain")
    trained = load_params(workdir / "classifier")[0]["hidden_0"]["kernel"]
    np.testing.assert_allclose(classifier.params["hidden_0"]["kernel"], trained, atol=1e-3)
    assert np.std(classifier.params["center"]) > 0.1  # set from the clips, not zero
    assert 0.3 <= localiser.temperature <= 5.0
    with pytest.raises(ValueError, match="no checkpoint of classifier or localiser"):
        export_judges(tmp_path, tmp_path / "judges")


def test_export_refuses_an_existing_folder_and_missing_parts(config, source, workdir, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export(config, workdir, tmp_path, source)
    with pytest.raises(ValueError, match="no checkpoint"):
        export(config, tmp_path, tmp_path / "new", source)
    with pytest.raises(ValueError, match=r"metadata\.csv"):
        export(config, workdir, tmp_path / "new", tmp_path)
    assert not (tmp_path / "new").exists()


def test_event_codes_need_room_for_the_labels(config):
    config = config.copy_and_resolve_references()
    config.text.event_codes = 100
    with pytest.raises(ValueError, match=r"config.text.event_codes = 100: must be above the number of labels, 127"):
        make_model(config, "text_encoder")


@pytest.mark.parametrize(("dropped", "same"), [(0.0, False), (0.999, True)])
def test_dropped_words_do_not_reach_the_denoiser(dropped, same):
    """Of two captions that name no event, so without a code, nothing is left."""
    config = tiny_config()
    config.text.event_codes, config.diffusion.words_dropped = 8, dropped
    model = make_model(config, "diffusion")
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: jax.random.normal(key, x.shape), jax.eval_shape(model.init, key))
    (encoder,) = model.init_frozen(key)
    encoder["event"]["bias"] = encoder["event"]["bias"].at[-1].set(100.0)
    shapes = {name: (4, *x.shape) for name, x in model.batch.items()}
    batch = {name: np.ones(shape, model.batch[name].dtype) for name, shape in shapes.items()}
    other = batch | {"token_ids": np.arange(4 * 24, dtype=np.int32).reshape(4, 24)}
    losses = [float(model.loss_fn(params, b, key, encoder)[0]) for b in (batch, other)]
    assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) == same


def test_unknown_task_is_named(config, tmp_path):
    with pytest.raises(ValueError, match="task = 'x'"):
        make_task(config, "x", tmp_path)
