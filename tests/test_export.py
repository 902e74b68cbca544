import json

import numpy as np
import pytest
from tiny import tiny_config

from dualspec_jax.diffusion.direction_prior import MIN_SCENES
from dualspec_jax.export import bundle_config, direction_prior

T, F, C = 2, 3, 8  # of the joint latents: four channels of each branch


def write_latents(folder, count, more=False):
    """Write cached latents whose STFT half is the azimuth's cosine, and noise in the other."""
    rng = np.random.default_rng(0)
    azimuth = rng.uniform(0, 360, count).astype(np.float32)
    latents = rng.normal(size=(count, T, F, C))
    latents[..., C // 2 :] = 2.0 + 3.0 * np.cos(np.deg2rad(azimuth))[:, None, None, None]
    folder.mkdir(parents=True)
    np.save(folder / "latents.npy", latents.astype(np.float16))
    np.save(folder / "azimuth_deg.npy", azimuth)
    np.save(folder / "label_index.npy", np.zeros(count, np.int32))
    if more:
        np.save(folder / "more_sources.npy", np.zeros((count, 2, 2), np.float32))
    meta = {"labels": ["rain"], "mean": [0.0] * 4 + [2.0] * 4, "std": [1.0] * 4 + [3.0] * 4}
    (folder / "meta.json").write_text(json.dumps(meta))
    return meta


def test_direction_prior_is_fitted_to_normalised_stft_latents(tmp_path):
    meta = write_latents(tmp_path / "train", MIN_SCENES)
    prior = direction_prior(tiny_config(), tmp_path / "train", meta)
    wanted = np.zeros_like(prior["coefficients"])
    wanted[1] = 1.0  # one cosine, the same in every component
    np.testing.assert_allclose(prior["coefficients"], wanted, atol=5e-3)
    assert prior["vectors"].shape == (F * 4, F * 4) and np.all(prior["variances"] < 1e-3)


@pytest.mark.parametrize("why", ["few", "several", "mel"])
def test_no_direction_prior_where_it_does_not_apply(tmp_path, why):
    meta = write_latents(tmp_path / "train", MIN_SCENES - (why == "few"), more=why == "several")
    config = tiny_config()
    if why == "mel":
        config.diffusion.stft_weight = 0.0
    assert direction_prior(config, tmp_path / "train", meta) is None


@pytest.mark.parametrize("more", [False, True])
def test_prompts_of_a_model_of_several_sources_are_not_reduced_to_one_label(tmp_path, more):
    write_latents(tmp_path / "train", 4, more)
    config = tiny_config()
    assert bundle_config(config, tmp_path / "train").sampler.reword is not more
    assert config.sampler.reword
