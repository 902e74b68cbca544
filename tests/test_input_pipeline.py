import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile
from tiny import tiny_config, tiny_tokenizer

from data.clip_bank import write_bank
from data.spatial_audio.build import build
from data.spatial_audio.spatial_audio_dataset_builder import SpatialAudioConfig
from dualspec_jax.clip_bank import ClipBank
from dualspec_jax.config import default
from dualspec_jax.elements import READ, swap_ears
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.coding import decode_stft_features
from dualspec_jax.ops.stft import stft
from dualspec_jax.scene_source import SceneSource, balanced_order, known_labels
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.direction import parse_direction
from dualspec_jax.spatial.scene import load_clip, normalise_loudness, trim
from dualspec_jax.spatial.sounds import event_wordings, heldout_wordings, labels
from dualspec_jax.tokenizer import train_tokenizer

DATASET = "spatial_audio/tiny:1.0.0"
TASKS = (
    "mel_vae",
    "stft_vae",
    "vocoder",
    "classifier",
    "localiser",
    "text_encoder",
    "listener",
    "event_guide",
    "diffusion",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    (root / "events").mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,label,split,licence"]
    for i, (label, split) in enumerate([("rain", "train"), ("rain", "train"), ("siren", "train"), ("rain", "valid")]):
        soundfile.write(str(root / "events" / f"{i}.wav"), 0.1 * rng.normal(size=16000), 16000)
        rows.append(f"{i}.wav,{label},{split},CC0-1.0")
    (root / "events" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def data_dir(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    build(SpatialAudioConfig(name="tiny", description="For tests.", n_train=6, n_valid=3), folder, root)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    texts = [w for label in labels() for w in event_wordings(label)] + [f"at {i} degrees" for i in range(360)]
    return train_tokenizer(texts, 800)


@pytest.fixture(scope="module")
def latents_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(10, 8, 4, 6)).astype(np.float16)
    latents[..., 0] = np.arange(8, dtype=np.float16)[:, None]  # channel 0 tells the time
    np.save(folder / "latents.npy", latents)
    np.save(folder / "azimuth_deg.npy", np.linspace(0, 324, 10).astype(np.float32) + 0.3)
    np.save(folder / "label_index.npy", np.array([0] * 8 + [1] * 2, np.int32))
    (folder / "meta.json").write_text(json.dumps({"labels": ["rain", "siren"]}))
    return folder


@pytest.fixture
def config():
    c = default()
    c.data.dataset, c.mel_vae.latent_channels = DATASET, 4
    for task in TASKS:
        c.train[task].batch_size = 4
    return c


@pytest.fixture
def batches(config, data_dir, tokenizer, latents_dir):
    def make(task, split="train", seed=0, **kwargs):
        sources = {"data_dir": data_dir, "tokenizer": tokenizer, "latents_dir": latents_dir}
        return make_batches(config, task, split, seed=seed, **sources | kwargs)

    return make


FORMS = {
    "mel_vae": {"mel": ((4, 128, 64, 2), "float32")},
    "stft_vae": {"stft": ((4, 128, 512, 4), "float32")},
    "vocoder": {"wave": ((4, 20480), "float32")},
    "classifier": {"mel": ((4, 256, 64), "float32"), "label": ((4,), "int32")},
    "listener": {"mel": ((4, 256, 64), "float32"), "label": ((4,), "int32")},
    "localiser": {"statistics": ((4, 512, 4), "float32"), "azimuth_deg": ((4,), "float32")},
    "text_encoder": {
        "token_ids": ((4, 48), "int32"),
        "text_mask": ((4, 48), "bool"),
        "label": ((4,), "int32"),
        "azimuth_deg": ((4,), "float32"),
        "has_direction": ((4,), "bool"),
    },
    "event_guide": {"latent": ((4, 8, 4, 4), "float32"), "label": ((4,), "int32")},
    "diffusion": {
        "latent": ((4, 8, 4, 6), "float32"),
        "token_ids": ((4, 48), "int32"),
        "text_mask": ((4, 48), "bool"),
        "azimuth_deg": ((4,), "float32"),
        "has_azimuth": ((4,), "bool"),
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_batches_have_the_documented_form(batches, task):
    batch = next(iter(batches(task)))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == FORMS[task]


@pytest.mark.parametrize("task", TASKS)
def test_position_is_resumed(batches, task):
    iterator = iter(batches(task))
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(2)]
    again = iter(batches(task))
    again.set_state(state)
    for batch in expected:
        resumed = next(again)
        for name, value in batch.items():
            np.testing.assert_array_equal(resumed[name], value)


@pytest.mark.parametrize("task", TASKS)
def test_seed_decides_the_batches(batches, task):
    first, same, other = (next(iter(batches(task, seed=s))) for s in (0, 0, 1))
    assert all(np.array_equal(first[k], same[k]) for k in first)
    assert not all(np.array_equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("task", TASKS)
def test_validation_is_finite_ordered_and_full(config, batches, task):
    on_latents = ("diffusion", "event_guide")
    split = "train" if task in on_latents else "valid"
    config.data.num_threads = 2
    passes = [list(batches(task, split, train=False)) for _ in range(2)]
    n = {"localiser": 256, "text_encoder": 512, **dict.fromkeys(on_latents, 3)}.get(task, 1)
    assert len(passes[0]) == n  # 3 scenes, 2048 captions, 10 latents in batches of 4
    for first, second in zip(*passes, strict=True):
        for name, value in first.items():
            assert len(value) == 4
            np.testing.assert_array_equal(second[name], value)


def test_validation_gives_whole_clips_in_stored_order(config, batches, data_dir):
    (batch,) = batches("stft_vae", "valid", train=False)
    source = SceneSource(data_dir, DATASET, "valid", ["stft"])
    assert batch["stft"].shape == (4, 512, 512, 4)
    for i in range(4):
        np.testing.assert_array_equal(batch["stft"][i], source[i % 3]["stft"])


def test_crops_are_parts_of_the_clips_at_random_places(batches, data_dir):
    source = SceneSource(data_dir, DATASET, "train", ["mel"])
    clips = [source[i]["mel"] for i in range(len(source))]
    starts = set()
    iterator = iter(batches("mel_vae"))
    for _ in range(3):
        for crop in next(iterator)["mel"]:
            found = [
                (i, t) for i, clip in enumerate(clips) for t in range(385) if np.array_equal(clip[t : t + 128], crop)
            ]
            assert found
            starts.add(found[0])
    assert len(starts) > 8


def test_scene_source_decodes_only_the_wanted_fields(data_dir):
    source = SceneSource(data_dir, DATASET, "train", ["stft"])
    assert len(source) == 6 and source.labels == ("rain", "siren")
    record = source[2]
    assert set(record) == {"stft", "azimuth_deg", "label_index"}
    coded = source.read_coded(2)
    assert coded["stft"].dtype == np.uint8
    np.testing.assert_array_equal(record["stft"], decode_stft_features(coded["stft"]))


def test_scene_source_can_be_pickled(data_dir):
    source = SceneSource(data_dir, DATASET, "train", ["mel"])
    source[0]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["mel"], source[1]["mel"])


def test_label_index_is_kept_beside_the_records(data_dir):
    source = SceneSource(data_dir, DATASET, "train", ["mel"])
    expected = [source[i]["label_index"] for i in range(len(source))]
    cache = source.directory / "label_index.train.json"
    cache.unlink(missing_ok=True)
    assert source.label_index.tolist() == expected
    assert json.loads(cache.read_text()) == expected
    assert SceneSource(data_dir, DATASET, "train").label_index.tolist() == expected


@pytest.mark.parametrize(
    ("dataset", "split", "fields", "message"),
    [
        ("spatial_audio/tiny", "train", ["mel"], "must be builder/config:version"),
        ("spatial_audio/none:1.0.0", "train", ["mel"], "build it with python -m data.spatial_audio.build"),
        (DATASET, "test", ["mel"], "split = 'test'"),
        (DATASET, "train", ["phase"], "field 'phase' is not in"),
    ],
)
def test_missing_data_is_named(data_dir, dataset, split, fields, message):
    with pytest.raises(ValueError, match=message):
        SceneSource(data_dir, dataset, split, fields)


def test_bad_arguments_are_named(config, batches, tmp_path):
    with pytest.raises(ValueError, match="task = 'vae'"):
        batches("vae")
    with pytest.raises(ValueError, match="tokenizer = None"):
        batches("text_encoder", tokenizer=None)
    config.feeding.source = "render"
    with pytest.raises(ValueError, match="feeding.source = 'render': task vocoder has no rendered form"):
        batches("vocoder")
    config.feeding.source = "features"
    with pytest.raises(ValueError, match="holds no cached latents"):
        batches("diffusion", latents_dir=tmp_path)


@pytest.mark.parametrize("cap", [0, 20, 200])
@pytest.mark.parametrize("balance", [-1.5, -0.5, 0.0, 0.5, 1.0])
def test_balance_sets_the_share_of_labels(balance, cap):
    label_index = np.repeat([0, 1, 3], [100, 25, 4])
    order = balanced_order(label_index, balance, seed=0, cap=cap)
    count = np.bincount(label_index[order])[[0, 1, 3]]
    expected = np.minimum([100.0, 25.0, 4.0], cap or np.inf) ** (1 - balance)
    np.testing.assert_allclose(count / count.sum(), expected / expected.sum(), rtol=0.02)
    assert set(order) == set(range(129))  # every scene comes
    for label in (0, 1, 3):
        times = np.bincount(order, minlength=129)[label_index == label]
        assert times.max() - times.min() <= 1


def test_labels_can_be_seen_more_often():
    label_index = np.repeat([0, 1, 3], [40, 10, 10])
    shares = np.bincount(label_index[balanced_order(label_index, 1.0, seed=0, factors={1: 3.0, 3: 0.5})])[[0, 1, 3]]
    np.testing.assert_allclose(shares / shares.sum(), np.array([1.0, 3.0, 0.5]) / 4.5, rtol=0.02)


def test_a_factor_of_an_unknown_label_is_named(config, batches):
    config.data.label_factors = (("car horn", 2.0),)  # known, but not in this data set
    batches("diffusion")
    config.data.label_factors = (("kazoo", 2.0),)
    with pytest.raises(ValueError, match="data.label_factors: 'kazoo' is neither"):
        batches("diffusion")


@pytest.mark.parametrize(("factors", "share"), [((), 0.5), ((("siren", 3.0),), 0.75)])
def test_training_sees_balanced_labels(config, batches, factors, share):
    config.data.label_balance, config.data.label_factors = 1.0, factors
    iterator = iter(batches("diffusion"))
    azimuths = np.concatenate([next(iterator)["azimuth_deg"] for _ in range(40)])
    rare = azimuths > 270  # the last two latents
    assert rare.mean() == pytest.approx(share, abs=0.05)


def test_latents_roll_in_time_only_if_asked(config, batches):
    def offsets():
        iterator = iter(batches("diffusion"))
        return {int(x[0, 0, 0]) for _ in range(10) for x in next(iterator)["latent"]}

    assert len(offsets()) == 8
    config.diffusion.time_roll = False
    assert offsets() == {0}


def decode(tokenizer, ids):
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def test_diffusion_captions_drop_their_conditions_as_configured(config, batches, tokenizer):
    d = config.diffusion
    d.null_prob, d.direction_free_prob, d.event_free_prob, d.azimuth_token_prob = 0.3, 0.0, 0.0, 0.6
    iterator = iter(batches("diffusion"))
    null, azimuth = [], []
    for _ in range(250):
        batch = next(iterator)
        null += [decode(tokenizer, ids) == "" for ids in batch["token_ids"]]
        azimuth += batch["has_azimuth"].tolist()
    null, azimuth = np.array(null), np.array(azimuth)
    assert null.mean() == pytest.approx(0.3, abs=0.05)  # 1000 draws: a standard error of 0.015
    assert not azimuth[null].any()
    assert azimuth[~null].mean() == pytest.approx(0.6, abs=0.06)


def test_diffusion_captions_without_direction_keep_the_azimuth_token(config, batches, tokenizer):
    d = config.diffusion
    d.null_prob, d.direction_free_prob, d.event_free_prob, d.azimuth_token_prob = 0.0, 1.0, 0.0, 1.0
    batch = next(iter(batches("diffusion")))
    assert batch["has_azimuth"].all()
    assert not any("degree" in decode(tokenizer, ids) for ids in batch["token_ids"])


def test_text_batches_mark_what_the_caption_leaves_out(config, batches, tokenizer):
    config.train.text_encoder.batch_size = 128
    d = config.diffusion
    d.direction_free_prob, d.event_free_prob = 0.25, 0.25
    iterator = iter(batches("text_encoder"))
    parts = [next(iterator) for _ in range(8)]
    batch = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    no_event, no_direction = batch["label"] == -1, ~batch["has_direction"]
    assert no_event.mean() == pytest.approx(0.25, abs=0.05) and no_direction.mean() == pytest.approx(0.25, abs=0.05)
    assert not (no_event & no_direction).any()
    assert np.all(batch["azimuth_deg"][no_direction] == 0)
    azimuth = batch["azimuth_deg"][~no_direction]
    assert azimuth.min() >= 0 and azimuth.max() < 360
    assert np.mean(azimuth == np.round(azimuth)) == pytest.approx(0.855, abs=0.05)
    assert len(set(batch["label"])) > 120


def test_validation_captions_use_held_out_wordings(config, batches, tokenizer):
    config.diffusion.direction_free_prob = 1.0
    held_out = {w.lower() for label in labels() for w in heldout_wordings(label)}
    texts = [decode(tokenizer, i) for b in batches("text_encoder", "valid", train=False) for i in b["token_ids"]]

    def squeeze(text):
        return "".join(c for c in text.lower() if c.isalnum())

    known = [squeeze(w) for w in held_out]
    hits = [any(w in squeeze(text) for w in known) for text in texts[:200]]
    assert np.mean(hits) > 0.9


# --- hosts, mixtures, mirrored scenes, worker processes ---


@pytest.mark.parametrize("task", ["mel_vae", "diffusion"])
def test_hosts_share_out_the_batch_of_one(batches, task):
    whole, *parts = (iter(batches(task, shard=shard)) for shard in ((0, 1), (0, 2), (1, 2)))
    for _ in range(3):
        expected, halves = next(whole), [next(part) for part in parts]
        for name, value in expected.items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), value)


def test_hosts_must_divide_the_batch(batches):
    with pytest.raises(ValueError, match=r"shard = \(0, 3\).*batch_size = 4"):
        batches("diffusion", shard=(0, 3))
    with pytest.raises(ValueError, match=r"shard = \(2, 2\)"):
        batches("diffusion", shard=(2, 2))


def test_sources_are_mixed_by_their_weights(config, batches, latents_dir, tmp_path):
    other = tmp_path / "train.other"
    shutil.copytree(latents_dir, tmp_path / "train")
    shutil.copytree(latents_dir, other)
    np.save(other / "azimuth_deg.npy", np.full(10, 7.5, np.float32))
    config.feeding.mix = (("spatial_audio/other:1.0.0", 0.25),)
    iterator = iter(batches("diffusion", latents_dir=tmp_path / "train"))
    azimuths = np.concatenate([next(iterator)["azimuth_deg"] for _ in range(50)])
    assert np.mean(azimuths == 7.5) == pytest.approx(0.2, abs=0.01)  # 0.25 of 1.25
    state = iterator.get_state()
    expected, again = next(iterator), iter(batches("diffusion", latents_dir=tmp_path / "train"))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["latent"], expected["latent"])


def test_mirrored_features_are_those_of_the_mirrored_scene():
    wave = np.random.default_rng(0).standard_normal((1, 10240, 2)).astype(np.float32)
    both = [stft(w, n_frames=64) for w in (wave, wave[..., ::-1])]
    plain, mirrored = (np.asarray(spatial_features(spec)) for spec in both)
    np.testing.assert_allclose(swap_ears(plain), mirrored, atol=1e-5)
    mel = np.arange(8.0).reshape(2, 2, 2)
    np.testing.assert_array_equal(swap_ears(mel)[..., 0], mel[..., 1])


def test_training_mirrors_the_wanted_share(config, batches):
    plain = next(iter(batches("mel_vae")))["mel"]
    config.feeding.mirror = 1.0
    np.testing.assert_array_equal(next(iter(batches("mel_vae")))["mel"], plain[..., ::-1])
    stored = [next(iter(batches("mel_vae", "valid", train=False)))["mel"] for _ in range(2)]
    np.testing.assert_array_equal(*stored)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(config, batches):
    here = iter(batches("diffusion"))
    expected = [next(here) for _ in range(3)]
    config.feeding.num_workers = 2
    there = iter(batches("diffusion"))
    for batch in expected[:2]:
        given = next(there)
        for name in batch:
            np.testing.assert_array_equal(given[name], batch[name])
    state = there.get_state()
    there.close()
    again = iter(batches("diffusion"))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["latent"], expected[2]["latent"])
    again.close()


# --- scenes rendered on the device ---


@pytest.fixture
def rendered(config, root, tmp_path, tokenizer):
    config.audio.n_samples, config.audio.n_frames, config.data.crop_frames = 10240, 64, 32
    config.feeding.source, config.feeding.clip_bank = "render", str(write_bank(root, tmp_path / "bank"))
    encode = lambda mel, stft: mel.reshape(4, 64, 4, -1)[..., :6]
    return lambda task, split="train", **kwargs: make_batches(
        config, task, split, **{"seed": 0, "tokenizer": tokenizer, "encode": encode} | kwargs
    )


def test_rendered_batches_have_the_same_form_and_resume(rendered):
    for task in ("mel_vae", "stft_vae", "classifier", "diffusion"):
        iterator = iter(rendered(task))
        next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
        batch = next(iterator)
        assert {k: (v.ndim, v.dtype.name) for k, v in batch.items()} == {
            k: (len(shape), dtype) for k, (shape, dtype) in FORMS[task].items()
        }
        again = iter(rendered(task))
        again.set_state(state)
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])
    assert batch["latent"].shape == (4, 64, 4, 6)


def test_rendered_validation_is_the_same_in_every_pass(rendered):
    first, second = ([b["mel"] for b in rendered("mel_vae", "valid", train=False)] for _ in range(2))
    assert len(first) == 1 and first[0].shape == (4, 64, 64, 2)
    np.testing.assert_array_equal(first[0], second[0])


def test_rendered_scenes_need_a_bank_and_an_encoder(config, rendered, tmp_path):
    with pytest.raises(ValueError, match="encode = None"):
        rendered("diffusion", encode=None)
    config.feeding.clip_bank = str(tmp_path)
    with pytest.raises(ValueError, match="python -m data.clip_bank"):
        rendered("mel_vae")


def test_clip_bank_holds_trimmed_events_at_one_loudness(root, tmp_path):
    bank = ClipBank(write_bank(root, tmp_path / "bank"), "train")
    assert len(bank) == 3 and bank.labels == ("rain", "siren") and bank.label_index.tolist() == [0, 0, 1]
    for i in range(3):
        expected = normalise_loudness(trim(load_clip(root / "events" / f"{i}.wav")))
        np.testing.assert_allclose(bank[i], expected, atol=1 / 32767)
    with pytest.raises(ValueError, match="holds no clip bank"):
        ClipBank(tmp_path, "train")


# --- labels of an own data set ---


def test_captions_know_the_labels_of_the_data_set(config, batches, tmp_path):
    folder = tmp_path / "spatial_audio" / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "label_index.labels.txt").write_text("espresso machine\nrain\n")
    assert known_labels(config, tmp_path) == tuple(sorted({*labels(), "espresso machine"}))
    assert known_labels(config, tmp_path / "none") == labels()
    config.diffusion.direction_free_prob, config.diffusion.event_free_prob = 1.0, 0.0
    config.text.dropout = 0.0
    config.train.text_encoder.batch_size = 256
    own = known_labels(config, tmp_path).index("espresso machine")
    seen = []
    for batch in batches("text_encoder", "valid", train=False, data_dir=tmp_path):
        seen += batch["label"].tolist()
    assert set(seen) == set(range(len(labels()) + 1)) and own in seen


def test_the_reader_learns_what_the_words_say_and_the_encoder_where_the_source_is(monkeypatch):
    config = default()
    tokenizer = tiny_tokenizer(tiny_config())
    drawn = []

    def caption_of(event, azimuth_deg, rng, style):
        drawn.append((make_caption(event, azimuth_deg, rng, style), azimuth_deg))
        return drawn[-1][0]

    monkeypatch.setattr("dualspec_jax.elements.make_caption", caption_of)
    off, half_hours = {}, {}
    for task in ("text_encoder", "reader"):
        drawn.clear()
        make = READ[task](config, task=task, split="train", tokenizer=tokenizer, train=True, data_dir="none").make
        took = [float(make(i, np.random.default_rng(i))["azimuth_deg"]) for i in range(300)]
        placed = [(caption, source, a) for (caption, source), a in zip(drawn, took, strict=True) if source is not None]
        said = [parse_direction(caption).azimuth_deg for caption, _, _ in placed]
        sources = np.array([source for _, source, _ in placed])
        target = said if task == "reader" else sources
        assert np.allclose([a for _, _, a in placed], target, atol=1e-4)
        off[task] = np.mean(np.abs((np.array(said) - sources + 180) % 360 - 180) > 1.0)
        half_hours[task] = np.mean(sources % 30 == 15)
    assert all(0.1 < share < 0.7 for share in off.values())  # else the two targets would be the same
    assert half_hours["text_encoder"] < 0.1 < half_hours["reader"]  # oftener than among all degrees
