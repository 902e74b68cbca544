"""A model small enough to build in a test: 0.64 s of audio, a few thousand parameters, random weights."""

from pathlib import Path

import jax
import numpy as np
from drawn import draw_params
from ml_collections import ConfigDict

from dualspec_jax import config as config_lib
from dualspec_jax import networks
from dualspec_jax.bundle import save_bundle
from dualspec_jax.config_rules import validate
from dualspec_jax.diffusion.direction_prior import MIN_SCENES, fit_direction_prior
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.tokenizer import train_tokenizer


def tiny_config() -> ConfigDict:
    """Return a valid config in which every size differs from the default."""
    c = config_lib.default()
    c.audio.n_samples, c.audio.n_frames = 10240, 64
    c.data.crop_frames = 32
    for name, channels in (("mel_vae", (8, 8)), ("stft_vae", (8, 8, 8))):
        c[name].channels, c[name].norm_groups, c[name].latent_channels = channels, 4, 4
    c.text.update(vocab_size=800, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, max_length=24)
    c.unet.update(channels=(16, 16), attention=(False, True), head_dim=8, norm_groups=4)
    c.sample.update(steps=3, griffin_lim_iters=2)
    c.vocoder.update(channels=8, layers=1, hidden=16, mel_iters=2, discriminator_channels=(4, 4))
    c.classifier.hidden = (8, 8)
    c.localiser.update(azimuths=36, hidden=(8,))
    c.reader.update(azimuths=36, queries=2, hidden=8, width=3)
    c.event_guide.update(channels=(8, 8), hidden=8, norm_groups=4)
    c.listener.update(channels=(8, 8), hidden=8, norm_groups=4)
    for task in config_lib.TASKS:
        c.train[task].update(batch_size=4, steps=2, log_every=1, eval_every=2, eval_batches=1, save_every=2)
    validate(c)
    return c


def tiny_tokenizer(config: ConfigDict):
    rng = np.random.default_rng(0)
    texts = [make_caption("a dog barking", float(azimuth), rng) for azimuth in range(360)]
    return train_tokenizer(texts, config.text.vocab_size)


def save_tiny_bundle(path: Path, config: ConfigDict | None = None, steps: dict[str, int] | None = None) -> str:
    """Write a bundle of random weights, with event guide and listener if its words name events; return its digest."""
    c = tiny_config() if config is None else config
    key = jax.random.key(0)
    t, f, channels = networks.latent_shape(c)
    frames, one = c.audio.n_frames, np.zeros(1, np.float32)
    mel, stft = np.zeros((1, frames, c.audio.n_mels, 2)), np.zeros((1, frames, c.audio.n_bins, 4))
    ids = np.zeros((1, c.text.max_length), np.int32)
    text = np.zeros((1, c.text.max_length, c.text.d_model), np.float32)
    latent = np.zeros((1, t, f, channels), np.float32)
    init = lambda module, *args: draw_params(module, *args)["params"]
    params = {
        "mel_vae": init(networks.make_vae(c.mel_vae), mel, key),
        "stft_vae": init(networks.make_vae(c.stft_vae), stft, key),
        "text_encoder": init(networks.make_text_encoder(c.text), ids, ids > -1),
        "reader": init(networks.make_reader(c), text, ids > -1),
        "vocoder": init(networks.make_vocoder(c), mel[..., 0], stft[..., 0]),
        "unet": init(networks.make_unet(c.unet), latent, one, text, ids > -1, one, one > 0),
    }
    if c.text.event_codes:
        params["event_guide"] = init(networks.make_event_guide(c), latent[..., : c.mel_vae.latent_channels])
        params["listener"] = init(networks.make_listener(c), mel[:, :: c.listener.pool, :, :1])
    rng, size = np.random.default_rng(0), f * c.stft_vae.latent_channels
    scenes = rng.normal(size=(MIN_SCENES, size)) * np.geomspace(1e-3, 1.0, size)
    params["direction"] = fit_direction_prior(scenes, rng.uniform(0, 360, MIN_SCENES), 4)
    mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    tokenizer = tiny_tokenizer(c).backend.to_str()
    return save_bundle(path, c, params, tokenizer, mean, std, ("dog barking", "rain"), "# a card\n", steps)
