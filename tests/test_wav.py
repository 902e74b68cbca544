import numpy as np
import pytest

from dualspec_jax.wav import read_wav, to_pcm16, write_atomically, write_wav


def test_wav_round_trip_within_half_a_step(tmp_path):
    waveform = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 2)).astype(np.float32)
    write_wav(tmp_path / "a.wav", waveform, 16000)
    again, rate = read_wav(tmp_path / "a.wav")
    assert rate == 16000 and again.shape == (1000, 2)
    assert np.abs(again - waveform).max() <= 0.5 / 32767 + 1e-7


def test_loud_clips_are_scaled_not_clipped():
    pcm = to_pcm16(np.array([[2.0, -1.0], [0.5, 0.0]]))
    assert pcm.tolist() == [[32767, -16384], [8192, 0]]


def test_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="No space left"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no-such-folder"):
        write_wav(tmp_path / "no-such-folder" / "a.wav", np.zeros((4, 2)), 16000)
