import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import save_tiny_bundle, tiny_config

from dualspec_jax.bundle import load_bundle
from dualspec_jax.checkpoint import latest_step, load_params
from dualspec_jax.export import total_steps
from dualspec_jax.import_bundle import INSIDE, TASKS, import_bundle
from dualspec_jax.loop import train
from dualspec_jax.tasks import make_task


def save_and_load(path, steps=None):
    save_tiny_bundle(path, steps=steps)
    return load_bundle(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_and_load(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(bundle, config) with every part that a bundle can have."""
    config, path = tiny_config(), tmp_path_factory.mktemp("whole") / "tiny"
    config.text.event_codes = 150
    save_tiny_bundle(path, config)
    return load_bundle(path), config


@pytest.fixture(scope="module")
def workdir(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "w"
    import_bundle(whole[1], folder, whole[0])
    return folder


@pytest.mark.parametrize("which", ["params", "ema_params"])
def test_checkpoints_hold_the_parameters_of_the_bundle(whole, workdir, which):
    bundle, _ = whole
    for task, part in TASKS.items():
        params, _ = load_params(workdir / task, which)
        assert latest_step(workdir / task) == 0
        jax.tree.map(np.testing.assert_array_equal, params[INSIDE[task]] if task in INSIDE else params,
                     bundle.params[part])  # fmt: skip
    assert json.loads((workdir / "tokenizer.json").read_text()) == json.loads(
        (bundle.path / "tokenizer.json").read_text()
    )


def test_training_goes_on_from_the_bundle(whole, workdir):
    bundle, config = whole[0], whole[1].copy_and_resolve_references()
    config.train.text_encoder.update(lr=1e-6, warmup_steps=1)  # so small that the weights stay near the bundle's
    state = train(config, make_task(config, "text_encoder", workdir), workdir)
    assert int(state.step) == config.train.text_encoder.steps
    new, old = jax.tree.leaves(state.params["encoder"]), jax.tree.leaves(bundle.params["text_encoder"])
    assert max(float(np.max(np.abs(a - b))) for a, b in zip(new, old, strict=True)) < 1e-4
    assert any(np.any(a != b) for a, b in zip(new, old, strict=True))


@pytest.mark.parametrize("before", [{}, {"unet": 100, "stft_vae": 30}])
def test_steps_of_the_bundle_count_too(tmp_path, before):
    here = {"unet": 7, "stft_vae": 0}
    assert total_steps(tmp_path, here) == here
    bundle = save_and_load(tmp_path / "bundle", before)
    import_bundle(tiny_config(), tmp_path / "w", bundle)
    assert json.loads((tmp_path / "w" / "imported.json").read_text())["bundle_sha256"] == bundle.digest
    assert total_steps(tmp_path / "w", here) == ({"unet": 107, "stft_vae": 30} if before else {})


def test_a_workdir_in_use_is_refused(bundle, workdir):
    with pytest.raises(ValueError, match="has a tokenizer.json already"):
        import_bundle(tiny_config(), workdir, bundle)


def test_a_config_of_another_size_is_refused_before_anything_is_written(bundle, tmp_path):
    config = tiny_config()
    config.unet.channels = (16, 32)
    with pytest.raises(ValueError, match=r"diffusion parameter .* has shape"):
        import_bundle(config, tmp_path / "w", bundle)
    assert not (tmp_path / "w").exists()


def test_options_newer_than_the_bundle_start_as_in_a_new_training(bundle, tmp_path):
    config = tiny_config()
    config.unet.condition_rows, config.text.event_codes = True, 150
    missing = import_bundle(config, tmp_path / "w", bundle)
    assert missing["diffusion"] == ["condition_rows/bias", "condition_rows/kernel"]
    assert missing["text_encoder"] == ["event/bias", "event/kernel", "event_table"] and not missing["mel_vae"]
    unet, encoder = load_params(tmp_path / "w" / "diffusion")[0], load_params(tmp_path / "w" / "text_encoder")[0]
    assert not np.any(unet.pop("condition_rows")["kernel"])
    jax.tree.map(np.testing.assert_array_equal, unet, bundle.params["unet"])
    assert np.std(encoder["encoder"]["event_table"]) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(
        encoder["encoder"]["shared"]["embedding"], bundle.params["text_encoder"]["shared"]["embedding"]
    )


def test_a_bundle_without_a_vocoder_imports_without(bundle, tmp_path):
    params = {part: tree for part, tree in bundle.params.items() if part != "vocoder"}
    import_bundle(tiny_config(), tmp_path / "w", dataclasses.replace(bundle, params=params))
    assert latest_step(tmp_path / "w" / "vocoder") is None
    assert latest_step(tmp_path / "w" / "diffusion") == 0
