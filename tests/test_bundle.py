import json

import numpy as np
import pytest
from tiny import save_tiny_bundle

from dualspec_jax.bundle import flatten, load_bundle, save_bundle, unflatten


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    save_tiny_bundle(path)
    return path


@pytest.fixture
def copy(bundle_dir, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    for file in bundle_dir.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_unflatten_inverts_flatten():
    tree = {"a": {"b": np.ones(2), "c": {"d": np.zeros(1)}}, "e": np.ones(3)}
    again = unflatten(flatten(tree))
    assert again["a"]["c"]["d"].shape == (1,) and again["e"].shape == (3,) and set(again["a"]) == {"b", "c"}


def test_bundle_comes_back_as_it_was_saved(bundle_dir):
    bundle = load_bundle(bundle_dir)
    assert bundle.labels == ("dog barking", "rain")
    assert bundle.config.audio.n_frames == 64
    assert bundle.config.unet.channels == (16, 16)
    kernel = bundle.params["unet"]["conv_in"]["kernel"]
    assert kernel.dtype == np.float32 and np.isfinite(kernel).all() and np.any(kernel)


def test_every_file_can_be_read_by_whom_the_first_can(bundle_dir):
    modes = {path.name: path.stat().st_mode for path in bundle_dir.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


def test_digest_is_the_one_that_save_returned_and_changes_with_the_weights(tmp_path):
    digest = save_tiny_bundle(tmp_path / "a")
    bundle = load_bundle(tmp_path / "a")
    assert bundle.digest == digest
    bundle.params["unet"]["conv_in"]["kernel"] = bundle.params["unet"]["conv_in"]["kernel"] + 1.0
    tokenizer = bundle.tokenizer.backend.to_str()
    other = save_bundle(
        tmp_path / "b", bundle.config, bundle.params, tokenizer, bundle.latent_mean, bundle.latent_std, ("x",), "card"
    )
    assert other != digest


def test_existing_folder_is_not_replaced(bundle_dir):
    with pytest.raises(ValueError, match="exists already"):
        save_tiny_bundle(bundle_dir)


@pytest.mark.parametrize("name", ["unet.safetensors", "tokenizer.json", "mel_vae.safetensors"])
def test_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}.*missing"):
        load_bundle(copy)


def test_cut_file_is_found_by_its_hash(copy):
    path = copy / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"unet\.safetensors.*broken"):
        load_bundle(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": {}, "format": 99}', '{"files": {}, "format": 1}'])
def test_broken_config_is_named(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_bundle(copy)


def test_impossible_config_value_is_named(copy):
    content = json.loads((copy / "config.json").read_text())
    content["config"]["unet"]["channels"] = [17, 17]
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"unet\.channels"):
        load_bundle(copy)


def test_folder_without_bundle(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_bundle(tmp_path)
