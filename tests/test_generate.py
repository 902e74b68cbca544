import numpy as np
import pytest
from tiny import save_tiny_bundle

from dualspec_jax.bundle import load_bundle
from dualspec_jax.generate import VOCODERS, Generator, Request


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
    "setting", [{"steps": 2}, {"guidance_mel": 2.0}, {"guidance_stft": 7.0}, {"eta": 1.0}, {"vocoder": VOCODERS[1]}]
)
def test_each_setting_matters(bundle, generator, setting):
    assert one(Generator(bundle, batch_size=2, **setting)).tobytes() != one(generator).tobytes()


@pytest.mark.parametrize(
    "setting",
    [{"steps": 0}, {"steps": 1001}, {"guidance_mel": -1.0}, {"eta": 1.5}, {"eta": float("nan")}, {"batch_size": 0}],
)
def test_setting_out_of_range_is_named(bundle, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        Generator(bundle, **setting)


def test_unknown_vocoder_is_named(bundle):
    with pytest.raises(ValueError, match="vocoder = 'x'"):
        Generator(bundle, vocoder="x")
