"""Every experiment of configs/: valid, and its models have the shapes they must have (no memory, no compilation)."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dualspec_jax import config, networks
from dualspec_jax.bundle import PARTS
from dualspec_jax.config_rules import validate
from dualspec_jax.sizes import table

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_configs():
    assert "embedded" in [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_says_how_to_run_it(path):
    doc = load(path).__doc__
    assert "Command:" in doc and "Hardware:" in doc


COUNTED = [pytest.param(path, marks=pytest.mark.slow if path.stem.startswith("base") else ()) for path in FILES]


@pytest.mark.parametrize("path", COUNTED, ids=lambda path: path.stem)
def test_docstring_has_the_counts(path):
    module = load(path)
    row = table(module.get_config(), ("diffusion",)).splitlines()[-1]
    parameters, batch, flops = [cell.strip() for cell in row.split("|")[2:5]]
    line = f"U-Net: {parameters} parameters, {flops.replace('e+', 'e')} FLOPs in a step of {batch} (`python -m "
    assert f"{line}dualspec_jax.sizes" in module.__doc__


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_valid(path):
    validate(load(path).get_config())


VARIANTS = ("base_s", "base_b", "base_l", "base_xl")  # of base; ten seconds each


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in VARIANTS else ()) for path in FILES],
    ids=lambda path: path.stem,
)
def test_models_have_their_shapes(path):
    c = load(path).get_config()
    a, b, key = c.audio, 2, jax.random.key(0)
    shape = jax.ShapeDtypeStruct
    t, f, channels = networks.latent_shape(c)
    sizes = dict.fromkeys(PARTS, 0)

    for name, bands in (("mel_vae", a.n_mels), ("stft_vae", a.n_bins)):
        model, section = networks.make_vae(c[name]), c[name]
        x = shape((b, a.n_frames, bands, section.in_channels), jnp.float32)
        (output, mu, logvar), variables = jax.eval_shape(lambda k, x, m=model: m.init_with_output(k, x, k), key, x)
        assert output.shape == x.shape
        assert mu.shape == logvar.shape == (b, t, f, section.latent_channels)
        sizes[name] = sum(p.size for p in jax.tree.leaves(variables))
    assert channels == c.mel_vae.latent_channels + c.stft_vae.latent_channels

    ids, mask = shape((b, c.text.max_length), jnp.int32), shape((b, c.text.max_length), bool)
    text, variables = jax.eval_shape(networks.make_text_encoder(c.text).init_with_output, key, ids, mask)
    assert text.shape == (b, c.text.max_length, c.text.d_model) and text.dtype == jnp.float32
    sizes["text_encoder"] = sum(p.size for p in jax.tree.leaves(variables))

    x, number, flag = shape((b, t, f, channels), jnp.float32), shape((b,), jnp.float32), shape((b,), bool)
    init = networks.make_unet(c.unet).init_with_output
    output, variables = jax.eval_shape(init, key, x, shape((b,), jnp.int32), text, mask, number, flag)
    assert output.shape == x.shape and output.dtype == jnp.float32
    sizes["unet"] = sum(p.size for p in jax.tree.leaves(variables))
    assert all(sizes.values())

    mel = shape((b, a.n_frames // c.classifier.pool, a.n_mels), jnp.float32)
    (logits, _), variables = jax.eval_shape(
        networks.make_classifier(c.classifier, 127, 100.0).init_with_output, key, mel
    )
    assert logits.shape == (b, 127)
    assert 2 * sum(p.size for p in jax.tree.leaves(variables)) < 8e6  # float16 in the package
    localiser = networks.make_localiser(c.localiser, a).init_with_output
    logits, variables = jax.eval_shape(localiser, key, shape((b, a.n_bins, 4), jnp.float32))
    assert logits.shape == (b, c.localiser.azimuths)
    assert 2 * sum(p.size for p in jax.tree.leaves(variables)) < 3e6
    assert c.unet.channels != config.default().unet.channels or path.stem.startswith(("embedded", "ablation"))
    if path.stem == "base":  # Tango's U-Net has 866 M
        assert 0.99 < sizes["unet"] / 866e6 < 1.01
        assert (t, f, channels) == (128, 16, 16)
    if path.stem == "embedded":  # shipped in the package as float16, at most 60 MB
        assert 2 * sum(sizes.values()) < 60e6
