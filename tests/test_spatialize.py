import json

import numpy as np
import pytest
import soundfile

from dualspec_jax import metrics, spatialize
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatialize import RoomSpec, Source, parse_place

NOISE = 0.05 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", NOISE, 16000)

    def call(*args):
        try:
            status = spatialize.main([str(a) for a in args])
        except SystemExit as e:  # argparse
            status = e.code
        return status, *capsys.readouterr()

    return call


def test_words_and_numbers_are_places():
    assert [parse_place(x) for x in ("3 o'clock", "behind me", "left", "37.5", "-90", "60 degrees")] == [
        270.0,
        180.0,
        90.0,
        37.5,
        270.0,
        60.0,
    ]
    for text in ("somewhere", "", "nan", "400"):
        with pytest.raises(ValueError):
            parse_place(text)


@pytest.fixture(autouse=True)
def spherical_default(monkeypatch):
    monkeypatch.delenv("DUALSPEC_DATA", raising=False)


def test_file_is_placed_where_the_words_say(run, tmp_path):
    status, out, _ = run("in.wav", "--direction", "3 o'clock")
    assert status == 0 and out.splitlines() == ["in_spatial.wav", "in_spatial.json"]
    ears, rate = soundfile.read(tmp_path / "in_spatial.wav")
    assert rate == 16000 and ears.shape == (16000 + spherical_head().hrir.shape[-1] - 1, 2)
    record = json.loads((tmp_path / "in_spatial.json").read_text())
    assert record["sources"][0]["azimuth_deg"] == 270.0 and record["room"] is None
    assert record["measured"]["itd_us"] < -400 and record["measured"]["ild_db"] < -5


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_sample_rate_keeps_the_cue(rate):
    mono = 0.05 * np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    ears, out_rate = spatialize.spatialize([Source(mono, rate, 90.0)])
    assert out_rate == rate
    assert metrics.itd_us(ears, rate) == pytest.approx(680.0, abs=80.0)


def test_sources_add_up_at_the_highest_rate_with_their_gains():
    a, b = Source(NOISE, 16000, 90.0), Source(NOISE[:8000], 8000, 270.0, -6.0)
    both, rate = spatialize.spatialize([a, b])
    alone = [spatialize.spatialize([s, Source(0 * NOISE, 16000, 0.0)])[0] for s in (a, b)]
    assert rate == 16000
    np.testing.assert_allclose(both, alone[0] + alone[1], atol=1e-5)
    full = spatialize.spatialize([Source(NOISE[:8000], 8000, 270.0), Source(0 * NOISE, 16000, 0.0)])[0]
    np.testing.assert_allclose(alone[1], full * 10 ** (-6 / 20), atol=1e-6)


def test_loud_scene_is_scaled_not_clipped():
    ears, _ = spatialize.spatialize([Source(30 * NOISE, 16000, 90.0)])
    assert np.abs(ears).max() == pytest.approx(0.98, abs=1e-3)


def test_other_head_and_format_are_used(run, tmp_path):
    head = spherical_head(radius_m=0.12)
    fields = {name: getattr(head, name) for name in ("hrir", "azimuth_deg", "elevation_deg", "sample_rate")}
    np.savez(tmp_path / "head.npz", **fields)
    assert run("in.wav", "--direction", 90, "--out", "a.flac")[0] == 0
    assert run("in.wav", "--direction", 90, "--hrtf", "head.npz", "--out", "b.wav", "--format", "wav_float")[0] == 0
    assert soundfile.info("a.flac").format == "FLAC" and soundfile.info("b.wav").subtype == "FLOAT"
    usual, large = (json.loads((tmp_path / f"{x}.json").read_text())["measured"]["itd_us"] for x in "ab")
    assert large > 1.2 * usual > 0


def test_stereo_is_averaged_with_a_warning(run, tmp_path):
    soundfile.write("two.wav", np.stack([NOISE, NOISE], axis=1), 16000)
    status, _, err = run("two.wav", "--direction", 90, "--out", "a.wav")
    assert status == 0 and "2 channels are averaged" in err
    assert run("in.wav", "--direction", 90, "--out", "b.wav")[0] == 0
    np.testing.assert_allclose(soundfile.read("a.wav")[0], soundfile.read("b.wav")[0], atol=1e-4)


def test_room_keeps_the_direction_and_adds_a_tail():
    pytest.importorskip("pyroomacoustics")
    pytest.importorskip("dualspec_jax.spatial.room")
    impulse = np.zeros(1600, np.float32)
    impulse[10] = 0.5
    dry, _ = spatialize.spatialize([Source(impulse, 16000, 90.0)])
    short, _ = spatialize.spatialize([Source(impulse, 16000, 90.0)], room=RoomSpec((5.0, 4.0, 2.8), 0.2, 1.0))
    long, _ = spatialize.spatialize([Source(impulse, 16000, 90.0)], room=RoomSpec((5.0, 4.0, 2.8), 0.6, 1.0))
    np.testing.assert_allclose(long[:20], dry[:20], atol=1e-3)
    late = lambda x: np.sum(x[4800:] ** 2)
    assert late(long) > 10 * late(short) > 0 == late(dry)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.wav", "--direction", "90"], "input = 'none.wav': cannot be read"),
        (["in.wav", "--direction", "nowhere"], "names no direction"),
        (["in.wav", "--direction", "90", "--direction", "0"], "2 given for 1 files"),
        (["in.wav", "--direction", "90", "--gain", "1", "--gain", "2"], "gain: 2 given"),
        (["in.wav", "--direction", "90", "--out", "a.mp3"], "out = 'a.mp3'"),
        (["in.wav", "--direction", "90", "--out", "a.wav", "--format", "flac"], "suffix .flac"),
        (["in.wav", "--direction", "90", "--out", "none/a.wav"], "none/a.wav"),
        (["in.wav", "--direction", "90", "--hrtf", "none.sofa"], "none.sofa"),
        (["in.wav", "--direction", "90", "--room", "5x4"], "length, width and height"),
        (["in.wav", "--direction", "90", "--room", "5xx4"], "length, width and height"),
        (["in.wav", "--direction", "90", "--room", "5x4x3", "--rt60", "9"], "rt60 = 9"),
        (["in.wav", "--direction", "90", "--room", "5x4x3", "--distance", "3"], "distance = 3"),
        (["in.wav"], "--direction"),
    ],
)
def test_mistake_is_one_line_and_exit_2(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2 and message in err.splitlines()[-1] and "Traceback" not in err


def test_existing_file_is_kept_without_overwrite(run, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"mine")
    assert run("in.wav", "--direction", 90, "--out", "a.wav")[0] == 2
    assert (tmp_path / "a.wav").read_bytes() == b"mine"
    assert run("in.wav", "--direction", 90, "--out", "a.wav", "--overwrite")[0] == 0
