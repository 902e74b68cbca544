"""Tasks of the spectrograms' autoencoders: mel_vae, its second stage mel_decoder, and stft_vae."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks
from dualspec_jax.checkpoint import latest_step
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.task import PICTURES, Model, Task, load_trained, no_frozen, scene_batches, shape_of

DECODER_PARTS = ("decoder", "post_quant_conv")  # of a VAE's parameters


def vae_model(config: ConfigDict, name: str) -> Model:
    """Return mel_vae or stft_vae, as a model."""
    v, t = config[name], config.train[name]
    network = networks.make_vae(v, jnp.dtype(t.dtype), t.remat)
    bands = config.audio.n_mels if name == "mel_vae" else config.audio.n_bins
    example = shape_of(config.data.crop_frames, bands, v.in_channels)

    def init(key):
        return network.init(key, jnp.zeros((1, *example.shape)), key)["params"]

    def apply(params, x, key):
        return network.apply({"params": params}, x, key)

    if name == "mel_vae":
        loss_fn = losses.mel_vae_loss(apply, v.kl_weight, v.diff_weight)
    else:
        loss_fn = losses.stft_vae_loss(apply, v.kl_weight, v.level_weight, v.cue_weight)
    return Model(init, loss_fn, no_frozen, {name.removesuffix("_vae"): example}, network)


def _vae_task(config: ConfigDict, workdir: Path, name: str, errors_of: Callable, error: str) -> Task:
    model = vae_model(config, name)
    (field,) = model.batch

    def reconstruct(params, x):
        mu, _ = model.network.apply({"params": params}, x, method="encode")
        return model.network.apply({"params": params}, mu, method="decode")

    def eval_fn(params, batch, key):
        del key
        return errors_of(batch[field], reconstruct(params, batch[field]))

    def pictures(params, batch, key):
        del key
        target = batch[field][:PICTURES]
        output = np.asarray(jax.jit(reconstruct)(params, target))
        return {f"clip_{i}": spectrogram_image(output[i][..., :2], target[i][..., :2]) for i in range(len(target))}

    batches = scene_batches(config, workdir, name)
    return Task(name, model.init, model.loss_fn, eval_fn, batches, pictures, error=lambda metrics: metrics[error])


def mel_vae_task(config: ConfigDict, workdir: Path) -> Task:
    """The Mel-VAE on crops of log-mels."""
    return _vae_task(config, workdir, "mel_vae", losses.mel_errors, "log_mel_l1")


def mel_decoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The Mel-VAE's second stage: what decodes learns on, against a discriminator; what encodes stays."""
    vae, discriminator = networks.make_vae(config.mel_vae), networks.make_discriminator(config)
    vae_params, d = jax.device_get(load_trained(workdir, "mel_vae")), config.mel_decoder
    example = jnp.zeros((1, config.data.crop_frames, config.audio.n_mels, config.mel_vae.in_channels))

    def init(key):
        decoder = {name: jax.tree.map(jnp.asarray, vae_params[name]) for name in DECODER_PARTS}
        return {"decoder": decoder, "discriminator": discriminator.init(key, example)["params"]}

    def encode(params, mel):
        return vae.apply({"params": params}, mel, method="encode")[0]

    def decode(params, decoder, z):
        return vae.apply({"params": params | decoder}, z, method="decode")

    loss_fn = losses.mel_decoder_loss(
        encode,
        decode,
        lambda params, mel: discriminator.apply({"params": params}, mel),
        diff_weight=config.mel_vae.diff_weight,
        adversarial_weight=d.adversarial_weight,
        feature_weight=d.feature_weight,
        latent_noise=d.latent_noise,
    )

    def reconstruct(params, mel, vae_params):
        return decode(vae_params, params["decoder"], encode(vae_params, mel))

    def eval_fn(params, batch, key, vae_params):
        del key
        output = reconstruct(params, batch["mel"], vae_params)
        ratio = losses.roughness(output) / losses.roughness(batch["mel"])
        return losses.mel_errors(batch["mel"], output) | {"roughness": ratio}

    def pictures(params, batch, key):
        del key
        target = batch["mel"][:PICTURES]
        output = np.asarray(jax.jit(reconstruct)(params, target, vae_params))
        return {f"clip_{i}": spectrogram_image(output[i], target[i]) for i in range(len(target))}

    batches = scene_batches(config, workdir, "mel_decoder")
    return Task("mel_decoder", init, loss_fn, eval_fn, batches, pictures, (vae_params,))


def load_mel_vae(workdir: Path) -> Any:
    """Return the Mel-VAE's parameters, with the decoder of the second stage where there is one.

    Raises:
      ValueError: no Mel-VAE is trained in the workdir.
    """
    params = load_trained(workdir, "mel_vae")
    if latest_step(workdir / "mel_decoder") is not None:
        params = params | load_trained(workdir, "mel_decoder")["decoder"]
    return params


def stft_vae_task(config: ConfigDict, workdir: Path) -> Task:
    """The STFT-VAE on crops of levels and coherence."""
    return _vae_task(config, workdir, "stft_vae", losses.stft_errors, "coherence_weighted")
