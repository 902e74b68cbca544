"""Tasks of the spectrograms' autoencoders: mel_vae and stft_vae, and their second stages, *_decoder."""

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


def _second_stage(config: ConfigDict, workdir: Path, name: str) -> tuple[Any, Any, Callable, Callable]:
    """Return (network, its trained parameters, encode, decode), where decode also takes the decoder that learns on."""
    vae = networks.make_vae(config[name])

    def encode(params, x):
        return vae.apply({"params": params}, x, method="encode")[0]

    def decode(params, decoder, z):
        return vae.apply({"params": params | decoder}, z, method="decode")

    return vae, jax.device_get(load_trained(workdir, name)), encode, decode


def _decoder_of(vae_params: Any) -> dict:
    return {part: jax.tree.map(jnp.asarray, vae_params[part]) for part in DECODER_PARTS}


def mel_decoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The Mel-VAE's second stage: what decodes learns on, against a discriminator; what encodes stays."""
    _, vae_params, encode, decode = _second_stage(config, workdir, "mel_vae")
    discriminator, d = networks.make_discriminator(config), config.mel_decoder
    example = jnp.zeros((1, config.data.crop_frames, config.audio.n_mels, config.mel_vae.in_channels))

    def init(key):
        return {"decoder": _decoder_of(vae_params), "discriminator": discriminator.init(key, example)["params"]}

    loss_fn = losses.mel_decoder_loss(
        encode,
        decode,
        lambda params, mel: discriminator.apply({"params": params}, mel),
        diff_weight=config.mel_vae.diff_weight,
        adversarial_weight=d.adversarial_weight,
        feature_weight=d.feature_weight,
        latent_noise=d.latent_noise,
    )

    def errors_of(target, output):
        return losses.mel_errors(target, output) | {"roughness": losses.roughness(output) / losses.roughness(target)}

    eval_fn, pictures = _decoder_evaluation("mel", encode, decode, vae_params, errors_of)
    batches = scene_batches(config, workdir, "mel_decoder")
    return Task("mel_decoder", init, loss_fn, eval_fn, batches, pictures, (vae_params,))


def stft_decoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The STFT-VAE's second stage: what decodes learns on, with more weight on what is loud; what encodes stays."""
    _, vae_params, encode, decode = _second_stage(config, workdir, "stft_vae")
    v, d = config.stft_vae, config.stft_decoder

    def init(key):
        del key
        return {"decoder": _decoder_of(vae_params)}

    loss_fn = losses.stft_decoder_loss(
        encode, decode, v.level_weight, v.cue_weight, loud_weight=d.loud_weight, latent_noise=d.latent_noise
    )

    def errors_of(target, output):
        return losses.stft_errors(target, output) | losses.loud_errors(target, output)

    eval_fn, pictures = _decoder_evaluation("stft", encode, decode, vae_params, errors_of)
    batches = scene_batches(config, workdir, "stft_decoder")
    error = lambda metrics: metrics["loud_ild"] + 2.0 * metrics["loud_coherence"]
    return Task("stft_decoder", init, loss_fn, eval_fn, batches, pictures, (vae_params,), error)


def _decoder_evaluation(field: str, encode, decode, vae_params, errors_of: Callable) -> tuple[Callable, Callable]:
    """Return `Task.eval_fn` and `Task.pictures` of a second stage."""

    def reconstruct(params, x, vae_params):
        return decode(vae_params, params["decoder"], encode(vae_params, x))

    def eval_fn(params, batch, key, vae_params):
        del key
        return errors_of(batch[field], reconstruct(params, batch[field], vae_params))

    def pictures(params, batch, key):
        del key
        target = batch[field][:PICTURES]
        output = np.asarray(jax.jit(reconstruct)(params, target, vae_params))
        return {f"clip_{i}": spectrogram_image(output[i][..., :2], target[i][..., :2]) for i in range(len(target))}

    return eval_fn, pictures


def load_vae(workdir: Path, name: str) -> Any:
    """Return the parameters of mel_vae or stft_vae, with the decoder of the second stage where there is one.

    Raises:
      ValueError: that VAE is not trained in the workdir.
    """
    params, stage = load_trained(workdir, name), second_stage_of(name)
    if latest_step(workdir / stage) is not None:
        params = params | load_trained(workdir, stage)["decoder"]
    return params


def second_stage_of(name: str) -> str:
    """Return the task that trains a VAE's decoder on: mel_decoder for mel_vae."""
    return name.replace("_vae", "_decoder")


def stft_vae_task(config: ConfigDict, workdir: Path) -> Task:
    """The STFT-VAE on crops of levels and coherence."""
    return _vae_task(config, workdir, "stft_vae", losses.stft_errors, "coherence_weighted")
