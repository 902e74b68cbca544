import numpy as np
import pytest
import soundfile

from dualspec_jax import metrics
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.scene import render
from dualspec_jax.wav_folder import list_clips, read_stereo


def write(path, channels=2, n=4800, rate=16000):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((n, channels)), rate)


def test_azimuths_come_from_the_names(tmp_path):
    for name in ("dog_true210_3.wav", "true0.wav", "b_true-90.5.wav"):
        write(tmp_path / name)
    assert {c.path.name: c.azimuth_deg for c in list_clips(tmp_path)} == {
        "b_true-90.5.wav": 269.5,
        "dog_true210_3.wav": 210.0,
        "true0.wav": 0.0,
    }


def test_azimuths_and_labels_come_from_a_table(tmp_path):
    write(tmp_path / "x.wav")
    write(tmp_path / "untrue.wav")  # not in the table: left out
    (tmp_path / "a.csv").write_text("file,azimuth_deg,label\nx.wav,-30,rain\n")
    (clip,) = list_clips(tmp_path, tmp_path / "a.csv")
    assert (clip.path.name, clip.azimuth_deg, clip.label) == ("x.wav", 330.0, "rain")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,degrees\nx.wav,3\n", "lacks the column 'azimuth_deg'"),
        ("file,azimuth_deg\ny.wav,3\n", "no file"),
        ("file,azimuth_deg\nx.wav,left\n", "must be a number"),
        ("file,azimuth_deg\nx.wav,361\n", "must be a number"),
        ("file,azimuth_deg\n", "has no rows"),
    ],
)
def test_bad_tables_are_named(tmp_path, table, message):
    write(tmp_path / "x.wav")
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        list_clips(tmp_path, tmp_path / "a.csv")


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        list_clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no WAV file"):
        list_clips(tmp_path)
    write(tmp_path / "dog.wav")
    with pytest.raises(ValueError, match="its name must hold its azimuth"):
        list_clips(tmp_path)


def test_any_rate_is_read_with_its_time_difference(tmp_path):
    head = spherical_head(48000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    ears = render(noise, 50.0, head)
    soundfile.write(tmp_path / "x.wav", ears, 48000)
    clip = read_stereo(tmp_path / "x.wav", 16000, 20000)
    assert clip.shape == (20000, 2) and not clip[16000:].any()
    assert metrics.itd_us(clip) == pytest.approx(metrics.itd_us(ears, 48000), abs=10.0)


def test_of_a_long_clip_the_loudest_window_is_taken(tmp_path):
    x = np.zeros((9000, 2))
    x[5000:6000] = 0.5
    soundfile.write(tmp_path / "x.wav", x, 16000)
    assert np.abs(read_stereo(tmp_path / "x.wav", 16000, 1000)).min() > 0.4


def test_mono_and_broken_files_are_refused(tmp_path):
    write(tmp_path / "mono.wav", channels=1)
    with pytest.raises(ValueError, match=r"has 1 channel: it must have 2 \(stereo\)"):
        read_stereo(tmp_path / "mono.wav", 16000, 1000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="cannot be read"):
        read_stereo(tmp_path / "broken.wav", 16000, 1000)
