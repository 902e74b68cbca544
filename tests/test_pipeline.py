import json

import numpy as np
import pytest
import soundfile
from tiny import save_tiny_bundle

from dualspec_jax.pipeline import DualSpecPipeline
from dualspec_jax.prompts import Request
from dualspec_jax.self_check import badness

PROMPT = "a dog barking at 10 o'clock"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    save_tiny_bundle(path)
    return DualSpecPipeline.from_pretrained(path, cache=False)


def test_one_prompt_gives_a_clip_with_all_that_is_known_of_it(pipe):
    output = pipe(PROMPT)
    assert output.waveforms.shape == (1, 10240, 2) and output.sample_rate == 16000 and len(output) == 1
    assert output.scenes[0].azimuth_deg == 60.0 and output.scenes[0].style == "clock"
    assert set(output.measured[0]) >= {"azimuth_deg", "itd_us", "ild_db", "lufs", "scaled_down", "silent"}
    assert output[0].record["measured"] is output.measured[0]


def test_lists_are_in_order_and_each_clip_is_that_of_its_own_seed(pipe):
    output = pipe(["rain", "a dog"], azimuth_deg=[90.0, None], num_waveforms_per_prompt=2, seed=5, batch_size=1)
    assert [clip.scene.prompt for clip in output] == ["rain", "rain", "a dog", "a dog"]
    assert [clip.record["seed"] for clip in output] == [5, 6, 7, 8]
    assert [scene.azimuth_deg for scene in output.scenes] == [90.0, 90.0, None, None]
    again = pipe("a dog", seed=8, batch_size=1)
    np.testing.assert_array_equal(again[0].waveform, output[3].waveform)


@pytest.mark.parametrize(
    "option",
    [
        {"negative_prompt": "rain"},
        {"num_inference_steps": 2},
        {"guidance_scale": 1.0},
        {"guidance_scale": (3.0, 7.0)},
        {"solver": "dpmpp_2m"},
        {"spacing": 3.0},
        {"eta": 1.0},
        {"direction_noise": 0.0},
        {"vocoder": "griffin_lim"},
        {"azimuth_deg": 61.0},
        {"seed": [4]},
        {"normalise": -40.0},
    ],
)
def test_each_option_changes_the_clip(pipe, option):
    assert pipe(PROMPT, **option).waveforms.tobytes() != pipe(PROMPT).waveforms.tobytes()


def test_new_words_can_be_left_as_written(pipe):
    words = "a watchful hound woofing at 10 o'clock"
    read, left = pipe(words)[0], pipe(words, reword=False)[0]
    assert read.waveform.tobytes() != left.waveform.tobytes()
    assert (read.record["prompt"], read.record["reword"], left.record["reword"]) == (words, True, False)


def test_guidance_interval_changes_the_clip_and_the_record(pipe):
    clip = pipe(PROMPT, guidance_interval=(0.0, 0.5))[0]
    assert clip.record["guidance_interval"] == [0.0, 0.5]
    assert clip.waveform.tobytes() != pipe(PROMPT).waveforms.tobytes()


def test_shorter_clip_is_the_start_of_the_long_one_faded(pipe):
    long, short = pipe(PROMPT)[0].waveform, pipe(PROMPT, duration=0.5)[0].waveform
    assert short.shape == (8000, 2)
    np.testing.assert_array_equal(short[: 8000 - 160], long[: 8000 - 160])
    assert np.all(short[-1] == 0.0) and np.any(long[7999] != 0.0)


def test_normalised_clip_has_the_asked_loudness(pipe):
    measured = pipe(PROMPT, normalise=-40.0).measured[0]
    assert measured["lufs"] == pytest.approx(-40.0, abs=0.1)
    limited = pipe(PROMPT, normalise=0.0)[0]
    assert limited.measured["peak"] <= 0.9801 and limited.record["gain_db"] > -60.0


@pytest.mark.parametrize("peak", [0.5, 3.0])
def test_loud_clip_is_scaled_down_below_full_scale(pipe, peak):
    maker = pipe.maker()
    request, scene = maker.check(Request(PROMPT))
    n = round(maker.duration * pipe.bundle.config.audio.sample_rate)
    waveform = np.random.default_rng(0).uniform(-1.0, 1.0, (n, 2)).astype(np.float32)
    waveform *= np.float32(peak) / np.abs(waveform).max()
    clip = maker._finish(request, request, scene, waveform)
    assert np.abs(clip.waveform).max() == pytest.approx(min(peak, 0.98), rel=1e-5)
    assert clip.measured["scaled_down"] == (peak > 0.98)
    assert clip.record["gain_db"] == pytest.approx(20 * np.log10(min(1.0, 0.98 / peak)), abs=0.01)


def test_best_of_keeps_the_candidate_with_the_best_direction_and_event(pipe):
    best = pipe(PROMPT, best_of=4, seed=3)[0]
    assert best.record["best_of"] == 4 and best.record["seed"] == 3
    seeds = [(3 + j * 0x9E3779B1) % 2**32 for j in range(4)]
    each = pipe([PROMPT] * 4, seed=seeds)
    ranks = [badness(m) for m in each.measured]
    assert best.record["made_with_seed"] == seeds[int(np.argmin(ranks))]
    assert best.measured["azimuth_error_deg"] == each.measured[int(np.argmin(ranks))]["azimuth_error_deg"]
    with pytest.raises(ValueError, match="best_of = 2: 'a zither' names no direction"):
        pipe("a zither", best_of=2)


def test_callback_counts_the_steps(pipe):
    seen = []
    pipe(PROMPT, callback=lambda *args: seen.append(args))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_save_writes_audio_and_record(pipe, tmp_path):
    output = pipe([PROMPT, "rain behind me"])
    paths = output.save(tmp_path / "new")
    assert [p.name for p in paths] == ["a-dog-barking-at-10-o-clock_seed0.wav", "rain-behind-me_seed1.wav"]
    record = json.loads(paths[0].with_suffix(".json").read_text())
    assert record == output[0].record
    pipe(PROMPT).save(tmp_path / "a.flac")
    assert soundfile.info(tmp_path / "a.flac").format == "FLAC"
    assert output.save(tmp_path / "f", "flac")[0].suffix == ".flac"
    with pytest.raises(ValueError, match="2 clips need a folder"):
        output.save(tmp_path / "b.wav")
    with pytest.raises(ValueError, match=r"format flac needs the suffix \.flac"):
        output[0].save(tmp_path / "b.wav", "flac")


def test_notebook_shows_player_and_picture_and_escapes_the_prompt(pipe):
    page = pipe("a <b>dog</b> on my left")._repr_html_()
    assert "data:audio/wav;base64,UklGR" in page and "data:image/png;base64,iVBOR" in page
    assert "<b>" not in page and "asked 90&deg;" in page


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt = "),
        ("", {}, "prompt = ''"),
        ("rain " * 300, {}, "at most 1000"),
        (PROMPT, {"azimuth_deg": 200.0}, "azimuth = 200: contradicts"),
        (PROMPT, {"azimuth_deg": [1.0, 2.0]}, "azimuth_deg of 2 values"),
        (PROMPT, {"duration": 0.65}, r"duration = 0.65: must be in \[0.1, 0.64\] s"),
        (PROMPT, {"duration": 0.0}, "duration = 0"),
        (PROMPT, {"seed": -1}, "seed = -1"),
        (PROMPT, {"num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt = 0"),
        (PROMPT, {"num_inference_steps": 0}, "steps = 0"),
        (PROMPT, {"guidance_scale": -1.0}, "guidance_scale = -1.0"),
        (PROMPT, {"best_of": 0}, "best_of = 0"),
        (PROMPT, {"normalise": 3.0}, "normalise = 3.0"),
        (PROMPT, {"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_mistake_is_named(pipe, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **options)


def test_missing_bundle_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        DualSpecPipeline.from_pretrained(tmp_path, cache=False)
