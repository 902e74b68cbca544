import copy
import dataclasses

import jax
import numpy as np
import pytest
from tiny import save_tiny_bundle, tiny_config

from dualspec_jax import networks
from dualspec_jax.bundle import load_bundle
from dualspec_jax.config import VOCODERS
from dualspec_jax.generate import NEXT_TRY, Generator
from dualspec_jax.models.event_network import log_agreement
from dualspec_jax.prompts import Request
from dualspec_jax.stages import make_synthesis, readers, samplers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    save_tiny_bundle(path)
    return load_bundle(path)


@pytest.fixture(scope="module")
def generator(bundle):
    return Generator(bundle, batch_size=2)


def one(generator, **fields):
    return next(iter(generator([Request(**{"prompt": "a dog barks at 10 o'clock"} | fields)])))


def test_waveform_has_two_finite_ears(generator):
    waveform = one(generator)
    assert waveform.shape == (10240, 2) and waveform.dtype == np.float32
    assert np.isfinite(waveform).all() and np.abs(waveform).max() > 0


def test_same_seed_gives_the_same_bytes_alone_and_in_a_batch(generator):
    requests = [Request("a dog barks at 10 o'clock", seed) for seed in (7, 8, 9)]
    together = list(generator(requests))
    for request, waveform in zip(requests, together, strict=True):
        assert next(iter(generator([request]))).tobytes() == waveform.tobytes()
    assert together[0].tobytes() != together[1].tobytes()


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"azimuth_deg": 90.0}, {"negative_prompt": "rain"}, {"prompt": "rain on my left"}]
)
def test_each_field_of_a_request_matters(generator, fields):
    assert one(generator, **fields).tobytes() != one(generator).tobytes()


def test_azimuth_0_and_none_differ(generator):
    assert one(generator, azimuth_deg=0.0).tobytes() != one(generator).tobytes()


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 2},
        {"solver": "dpmpp_2m"},
        {"solver": "ddim"},
        {"spacing": 2.5},
        {"guidance_rescale": 0.1},
        {"guidance_mel": 2.0},
        {"guidance_stft": 7.0},
        {"direction_noise": 0.0},
        {"guidance_interval": (0.0, 0.5)},
        {"vocoder": VOCODERS[0]},
        {"vocoder": VOCODERS[1]},
    ],
)
def test_each_setting_matters(generator, setting):
    other = generator.with_settings(**setting)
    (name,) = setting
    assert getattr(other, name) == setting[name] != getattr(generator, name)
    assert one(other).tobytes() != one(generator).tobytes()


def test_new_words_become_the_label_unless_left_as_written(generator):
    new, off = "a watchful hound woofing at 10 o'clock", generator.with_settings(reword=False)
    label = one(generator, prompt="dog barking, at 60 degrees").tobytes()
    assert one(generator, prompt=new).tobytes() == label != one(off, prompt=new).tobytes()
    assert one(off).tobytes() == one(generator).tobytes()  # words of training


def test_sampling_noise_matters(generator):
    plain, noisy = (generator.with_settings(solver="ddim", eta=eta) for eta in (0.0, 1.0))
    assert one(noisy).tobytes() != one(plain).tobytes()
    assert generator.with_settings(eta=1.0).solver == "ddim"
    with pytest.raises(ValueError, match="sampling noise needs solver ddim"):
        generator.with_settings(solver="unipc", eta=0.5)


def test_changing_a_number_compiles_nothing(generator):
    one(generator)
    before = generator.seconds["compile"]
    one(generator.with_settings(solver="unipc", guidance_mel=1.0), prompt="rain " * 12)
    assert generator.seconds["compile"] == before
    one(generator.with_settings(steps=5))
    assert generator.seconds["compile"] > before


def test_batch_of_another_size_gives_the_same_clip(generator):
    """On one device instead of two; Griffin-Lim amplifies the rounding a little."""
    alone = one(generator.with_settings(batch_size=1))
    np.testing.assert_allclose(alone, one(generator), atol=2e-3 * np.abs(alone).max())


def test_callback_sees_each_step_and_changes_nothing(generator):
    seen = []
    requests = [Request("a dog barks at 10 o'clock", seed) for seed in (0, 1, 2)]
    watched = list(generator(requests, lambda *args: seen.append(args)))
    assert seen == [(i, 6) for i in range(1, 7)]  # two batches of three steps
    np.testing.assert_allclose(watched[0], one(generator), atol=2e-3 * np.abs(watched[0]).max())


def test_callback_can_stop_the_work(generator):
    def stop(step, steps):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(generator([Request("rain")], stop))


@pytest.mark.parametrize(("size", "advice"), [(2, "try 1"), (1, "try JAX_PLATFORMS=cpu")])
def test_full_memory_names_a_smaller_batch(generator, monkeypatch, size, advice):
    def run_out(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    small = generator.with_settings(batch_size=size)
    monkeypatch.setattr(small, "_make", run_out)
    with pytest.raises(ValueError, match=f"batch_size = {size}: .*; {advice}"):
        list(small([Request("rain")]))


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"steps": 1001},
        {"solver": "euler"},
        {"guidance_mel": -1.0},
        {"guidance_interval": (0.6, 0.4)},
        {"spacing": 0.5},
        {"spacing": float("nan")},
        {"eta": 1.5},
        {"direction_noise": -1.0},
        {"eta": float("nan")},
        {"vocoder": "x"},
        {"batch_size": 0},
        {"event_guidance": -0.1},
        {"accept": 1.5},
        {"accept": float("nan")},
    ],
)
def test_setting_out_of_range_is_named(bundle, generator, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        Generator(bundle, **setting)
    with pytest.raises(ValueError, match=name):
        generator.with_settings(**setting)


def test_noise_with_a_solver_that_has_none_is_refused(bundle):
    with pytest.raises(ValueError, match="eta = 0.5: sampling noise needs solver ddim"):
        Generator(bundle, eta=0.5, solver="unipc")


def test_without_an_angle_the_direction_stays_as_generated(generator):
    off = generator.with_settings(direction_noise=0.0)
    assert next(iter(off([Request("rain", 3)]))).tobytes() == next(iter(generator([Request("rain", 3)]))).tobytes()


def test_a_bundle_without_a_direction_prior_says_so(bundle):
    params = {name: tree for name, tree in bundle.params.items() if name != "direction"}
    without = dataclasses.replace(bundle, params=params)
    with pytest.raises(ValueError, match="direction_noise = 0.5: the bundle .* has no direction prior"):
        Generator(without, direction_noise=0.5)
    assert Generator(without).direction_noise == 0.0
    plain = Generator(bundle, direction_noise=0.0)
    np.testing.assert_allclose(one(Generator(without)), one(plain), atol=1e-4)


def test_a_bundle_without_a_neural_vocoder_says_so(bundle):
    params = {name: tree for name, tree in bundle.params.items() if name != "vocoder"}
    without = dataclasses.replace(bundle, params=params)
    with pytest.raises(ValueError, match="vocoder = 'vocos': the bundle .* has no neural vocoder"):
        Generator(without, vocoder="vocos")
    assert (Generator(without).vocoder, Generator(bundle).vocoder) == ("griffin_lim_stft", "vocos")
    for name in VOCODERS[:2]:
        same = one(Generator(bundle, batch_size=2, vocoder=name))
        assert one(Generator(without, batch_size=2, vocoder=name)).tobytes() == same.tobytes()


def test_mel_iterations_follow_griffin_lim(bundle):
    config = copy.deepcopy(bundle.config)
    config.sample.mel_iters = 2
    plain, other = bundle, dataclasses.replace(bundle, config=config)
    clips = [one(Generator(b, batch_size=2, vocoder="griffin_lim")).tobytes() for b in (plain, other)]
    assert clips[0] != clips[1]


def test_silent_clips_are_made_again_from_other_noise(generator, monkeypatch):
    """A clip whose seed is "silent" is the one of the next seed, alone and in a batch; its neighbour stays as it is."""
    requests = [Request("rain", 7), Request("rain", 8)]
    plain = list(generator.with_settings(tries=1)(requests))
    make, made = Generator._make, []

    def make_silent(self, batch, report):
        made.append([r.seed for r in batch])
        clips, ranks = make(self, batch, report)
        silent = np.array([r.seed == 7 for r in batch])
        return np.where(silent[:, None, None], 0.0, clips), np.where(silent, -1.0, ranks)

    monkeypatch.setattr(Generator, "_make", make_silent)
    steps = []
    again = list(generator(requests, callback=lambda done, total: steps.append((done, total))))
    later, n = (7 + NEXT_TRY) % 2**32, generator.steps
    assert made == [[7, 8], [later, later]]
    assert steps == [(i, n) for i in range(1, n + 1)] + [(n + i, 2 * n) for i in range(1, n + 1)]
    assert again[1].tobytes() == plain[1].tobytes()
    assert np.abs(again[0] - one(generator, prompt="rain", seed=later)).max() < 1e-4 and again[0].any()
    made.clear()
    assert not one(generator.with_settings(tries=1), prompt="rain", seed=7).any() and len(made) == 1
    silence = np.zeros((2, 9, 2)), np.full(2, -1.0)
    monkeypatch.setattr(Generator, "_make", lambda self, batch, report: made.append(0) or silence)
    made.clear()
    assert not one(generator.with_settings(tries=4)).any() and len(made) == 4


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A bundle whose text encoder names events, with event guide and listener."""
    config = tiny_config()
    config.text.event_codes = 4
    path = tmp_path_factory.mktemp("ranked") / "b"
    save_tiny_bundle(path, config)
    return load_bundle(path)


@pytest.fixture(scope="module")
def ranker(ranked):
    return Generator(ranked, batch_size=2)


def test_the_most_probable_of_the_tries_is_kept(ranker, monkeypatch):
    """Whatever is made together with it; `accept` and `tries` end the search."""
    prompts = [Request("rain", seed) for seed in range(5)]
    candidates = {}
    make = Generator._make

    def noted(self, batch, report):
        clips, ranks = make(self, batch, report)
        for request, clip, rank in zip(batch, clips, ranks, strict=True):
            candidates[request.seed] = rank, clip.tobytes()
        return clips, ranks

    monkeypatch.setattr(Generator, "_make", noted)
    never = ranker.with_settings(accept=1.0, tries=3)
    clips = list(never(prompts))
    tries = [[(r.seed + k * NEXT_TRY) % 2**32 for k in range(3)] for r in prompts]
    assert set(candidates) == {seed for seeds in tries for seed in seeds}
    ranks = np.array([[candidates[seed][0] for seed in seeds] for seeds in tries])
    assert ((ranks > 0) & (ranks < 1)).all() and len(set(ranks.argmax(1))) > 1  # not always the first or the last
    for clip, seeds, best in zip(clips, tries, ranks.argmax(1), strict=True):
        assert clip.tobytes() == candidates[seeds[best]][1]
    candidates.clear()
    assert one(never, prompt="rain", seed=3).tobytes() == clips[3].tobytes() and len(candidates) == 3
    limit = float(np.median(ranks[:, 0]))
    early = list(ranker.with_settings(accept=limit, tries=2)(prompts))
    for clip, seeds, rank in zip(early, tries, ranks, strict=True):
        best = 0 if rank[0] >= limit else int(np.argmax(rank[:2]))
        assert clip.tobytes() == candidates[seeds[best]][1]


def test_a_clip_is_ranked_by_the_event_that_its_words_name(ranked):
    """A text encoder that always names event 1 and a listener that always hears event 1, or event 2, or "none"."""
    sure = lambda size, i: {"bias": np.where(np.arange(size) == i, 50.0, 0.0).astype(np.float32)}
    for named, heard, expected in ((1, 1, 1.0), (1, 2, 0.0), (3, 2, 1.0)):
        params = copy.deepcopy(ranked.params)
        for part, layer, size, i in (("text_encoder", "event", 4, named), ("listener", "out", 3, heard)):
            params[part][layer] = {"kernel": 0.0 * params[part][layer]["kernel"]} | sure(size, i)
        maker = Generator(dataclasses.replace(ranked, params=params))
        params, inputs, _ = maker._arguments([Request("rain")])
        _, _, events = maker._run("encode", params, inputs)
        found = maker._run(
            "rank", params["listener"], np.ones((1, ranked.config.audio.n_samples, 2), np.float32), events
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_bundle_without_event_guide_or_listener_says_so(bundle, ranked, ranker):
    assert (Generator(bundle).accept, Generator(bundle).event_guidance) == (0.0, 0.0)
    for name, part in (("accept", "listener"), ("event_guidance", "event guide")):
        with pytest.raises(ValueError, match=f"{name} = 0.5: the bundle .* has no {part}"):
            Generator(bundle, **{name: 0.5})
    without = dataclasses.replace(
        ranked, params={k: v for k, v in ranked.params.items() if k not in ("event_guide", "listener")}
    )
    plain = one(ranker.with_settings(accept=0.0, event_guidance=0.0))
    same = one(Generator(without, batch_size=2))
    np.testing.assert_allclose(same, plain, atol=2e-3 * np.abs(plain).max())


def test_guidance_to_the_event_makes_it_more_probable(ranker):
    guide, n_mel = networks.make_event_guide(ranker.bundle.config), ranker.bundle.config.mel_vae.latent_channels

    def probability(pull):
        maker = ranker.with_settings(event_guidance=pull)
        params, inputs, control = maker._arguments([Request("rain", seed) for seed in range(2)])
        condition, carry, events = maker._run("encode", readers(params), inputs)
        given = samplers(params), condition, carry, maker._rows, inputs["seed"], events
        latent = maker._run("sample", *given, *control)[0][..., :n_mel]
        return np.exp(log_agreement(guide.apply({"params": params["event_guide"]}, latent), events))

    assert (probability(0.0) + 1e-3 < probability(0.5)).all()


def test_words_alone_are_read_by_the_reader_and_the_rules_by_default(bundle):
    """A reader that always says 90 degrees: with text_only the clip is the one asked for at 90, else it is not."""
    params = copy.deepcopy(bundle.params)
    out = params["reader"]["out"]
    out["kernel"], out["bias"] = 0.0 * out["kernel"], np.where(np.arange(37) == 9, 50.0, 0.0).astype(np.float32)
    sure = Generator(dataclasses.replace(bundle, params=params))
    alone = one(sure, prompt="rain on my right", text_only=True)
    assert alone.tobytes() == one(sure, prompt="rain on my right", text_only=True, azimuth_deg=90.0).tobytes()
    assert one(sure, prompt="rain on my right").tobytes() == one(Generator(bundle), prompt="rain on my right").tobytes()
    none = copy.deepcopy(params)
    none["reader"]["out"]["bias"] = np.where(np.arange(37) == 36, 50.0, 0.0).astype(np.float32)
    without = {name: value for name, value in bundle.params.items() if name != "reader"}
    clips = [
        one(Generator(dataclasses.replace(bundle, params=p)), prompt="rain on my right", text_only=True)
        for p in (none, without)
    ]
    assert clips[0].tobytes() == clips[1].tobytes() != alone.tobytes()


def test_phases_of_diffuse_sound_are_drawn_above_the_fine_structure_only(bundle, monkeypatch):
    config, rng = bundle.config, np.random.default_rng(0)
    frames, bins = config.audio.n_frames, config.audio.n_bins
    features = rng.normal(-4.0, 1.0, (1, frames, bins, 4)).astype(np.float32)
    features[..., 2:] = (0.3, 0.0)  # |gamma| as in a room
    mel = rng.normal(-4.0, 1.0, (1, frames, config.audio.n_mels, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 1)
    clips = []
    for factor in (1.0, 0.0):
        drawn = lambda key, *size, factor=factor: factor * jax.random.normal(key, size)
        monkeypatch.setattr("dualspec_jax.stages.phase_noise", drawn)
        clips.append(np.asarray(make_synthesis(config, "griffin_lim")({}, mel, features, keys))[0])
    changed, size = (np.abs(np.fft.rfft(x, axis=0)) ** 2 for x in (clips[0] - clips[1], clips[1]))
    cut = int(1300 / 8000 * len(size))
    assert changed[:cut].sum() < 1e-3 * size[:cut].sum() and changed[cut:].sum() > 0.1 * size[cut:].sum()
