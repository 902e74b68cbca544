import numpy as np
import pytest
from tiny import save_tiny_bundle

from dualspec_jax.bundle import load_bundle
from dualspec_jax.gallery import PROMPTS, cues_over_time, main, make_gallery
from dualspec_jax.spatial.direction import parse_direction
from dualspec_jax.spatial.hrtf import spherical_head


def test_cues_over_time_follow_a_source_that_jumps():
    noise = np.random.default_rng(0).standard_normal(32000)
    waveform = np.stack([noise, noise], axis=1)
    waveform[:16000, 1] = 0.5 * np.roll(noise, 8)[:16000]  # left leads by 500 us and is 6 dB louder
    waveform[-7000:] *= 1e-4
    cues = cues_over_time(waveform, 16000)
    early, late, faint = cues["time_s"] < 0.8, (cues["time_s"] > 1.2) & (cues["time_s"] < 1.4), cues["time_s"] > 1.7
    np.testing.assert_allclose(cues["itd_us"][early], 500.0, atol=10.0)
    np.testing.assert_allclose(cues["ild_db"][early], 6.02, atol=0.1)
    np.testing.assert_allclose(cues["itd_us"][late], 0.0, atol=1.0)
    assert np.all(np.isnan(cues["ild_db"][faint])) and np.any(faint)


def test_every_prompt_names_a_direction():
    assert len(PROMPTS) == 12
    assert all(parse_direction(prompt) is not None for prompt in PROMPTS)


def test_gallery_shows_each_prompt_with_its_measured_direction(tmp_path):
    save_tiny_bundle(tmp_path / "bundle")
    prompts = ("a dog barking at 10 o'clock", "rain to the right")
    records = make_gallery(tmp_path, load_bundle(tmp_path / "bundle"), spherical_head(), prompts)
    text = (tmp_path / "gallery.md").read_text()
    assert "The head: rigid sphere;" in text
    for i, (prompt, record) in enumerate(zip(prompts, records, strict=True)):
        assert f"## {prompt}" in text and f"ITD {record['itd_us']:.0f} us" in text
        assert (tmp_path / "gallery" / f"{i:02d}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="'rain': must name a direction"):
        make_gallery(tmp_path, load_bundle(tmp_path / "bundle"), spherical_head(), ("rain",))


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
