import numpy as np
import pytest
import soundfile

from dualspec_jax.wav import read_wav, to_pcm16, write_atomically, write_audio, write_wav


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


def test_formats_hold_what_they_should(tmp_path):
    loud = np.random.default_rng(0).uniform(-1.5, 1.5, (10240, 2)).astype(np.float32)
    for name, format, subtype in (
        ("a.wav", "wav", "PCM_16"),
        ("b.wav", "wav_float", "FLOAT"),
        ("c.flac", "flac", "PCM_16"),
    ):
        write_audio(tmp_path / name, loud, 16000, format)
        info = soundfile.info(tmp_path / name)
        assert (info.subtype, info.channels, info.samplerate, info.frames) == (subtype, 2, 16000, 10240)
    floats, _ = soundfile.read(tmp_path / "b.wav")
    np.testing.assert_allclose(floats, loud, atol=1e-6)
    assert np.abs(soundfile.read(tmp_path / "c.flac")[0]).max() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="format = 'mp3'"):
        write_audio(tmp_path / "d.mp3", loud, 16000, "mp3")
