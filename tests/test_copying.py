import numpy as np
import pytest

from dualspec_jax import config as config_lib
from dualspec_jax.copying import CopyIndex, load_copy_index

RATE = 100.0  # frames per second


@pytest.fixture(scope="module")
def bank():
    return np.random.default_rng(0).normal(-3.0, 1.0, (5, 400, 16))


@pytest.fixture(scope="module")
def index(bank):
    return CopyIndex(bank, RATE)


def test_a_second_of_a_recording_is_found_at_any_place_and_level(bank, index):
    clip = np.full((512, 16), -20.0)
    clip[36:236] = bank[3, 120:320] + 1.5
    assert index.similarity(clip) == pytest.approx(1.0, abs=1e-3)


def test_another_recording_is_not_a_copy(index):
    assert index.similarity(np.random.default_rng(1).normal(-3.0, 1.0, (400, 16))) < 0.3


def test_noise_on_a_copy_lowers_the_similarity_by_its_share(bank, index):
    noise = np.random.default_rng(2).normal(0.0, 1.0, bank[0].shape)
    found = [index.similarity(bank[0] + amount * noise) for amount in (0.0, 0.5, 1.0)]
    # Noise of the same spread as the clip: correlation 1 / sqrt(2).
    assert found[0] == pytest.approx(1.0, abs=1e-3) and found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0.71, abs=0.1)


def test_silence_in_a_recording_is_like_nothing(bank):
    padded = np.concatenate([bank[:2], np.full((2, 400, 16), -3.0)])
    padded[2:, :20] = bank[2:4, :20]  # then silence, 9 nepers down
    padded[2:, 20:] = -40.0
    other = np.random.default_rng(1).normal(-3.0, 1.0, (400, 16))
    assert CopyIndex(padded, RATE).similarity(other) < 0.3
    assert CopyIndex(padded, RATE).similarity(bank[0]) == pytest.approx(1.0, abs=1e-3)


def test_missing_table_and_labels_are_named(tmp_path):
    audio = config_lib.default().audio
    with pytest.raises(ValueError, match="metadata.csv"):
        load_copy_index(tmp_path, ("rain",), audio)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "metadata.csv").write_text("file,label,split\na.wav,rain,valid\n")
    with pytest.raises(ValueError, match="no recording of rain"):
        load_copy_index(tmp_path, ("rain",), audio)
