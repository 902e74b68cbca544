"""mel_vae | stft_vae | text_encoder | classifier | diffusion: how to build (init, loss_fn, ...) for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks
from dualspec_jax.checkpoint import load_params
from dualspec_jax.config import TASKS
from dualspec_jax.diffusion.guidance import guide
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import sample_latent
from dualspec_jax.input_pipeline import SceneSource, make_batches
from dualspec_jax.models.text_encoder import CaptionHeads
from dualspec_jax.ops.mel import sum_ears
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.sounds import event_wordings, labels
from dualspec_jax.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

PICTURES = 4  # clips shown at each evaluation


class Task(NamedTuple):
    """What the loop needs to know of a task.

    Attributes:
      init: key -> params.
      loss_fn: (params, batch, key) -> (loss, metrics), for training.
      eval_fn: (params, batch, key) -> metrics, on validation batches with the averaged parameters.
      make_batches: (split, train, seed) -> Grain iterable of NumPy batches.
      pictures: (params, batch, key) -> {name: uint8 image}; None where there is nothing to look at.
    """

    name: str
    init: Callable
    loss_fn: Callable
    eval_fn: Callable
    make_batches: Callable
    pictures: Callable | None


def make_task(config: ConfigDict, name: str, workdir: str | Path) -> Task:
    """Build a task.

    Raises:
      ValueError: unknown task, or what it builds on (data set, latents, trained parts) is missing.
    """
    if name not in TASKS:
        raise ValueError(f"task = {name!r}: must be one of {', '.join(TASKS)}")
    return globals()[f"_{name}_task"](config, Path(workdir))


def _scene_batches(config: ConfigDict, workdir: Path, task: str) -> Callable:
    def batches(split, train, seed):
        data_dir = config.data.data_dir or workdir / "tfds"
        return make_batches(config, task, split, seed=seed, data_dir=data_dir, train=train)

    return batches


def _vae_task(config: ConfigDict, workdir: Path, name: str, field: str, bands: int, loss_of, errors_of) -> Task:
    model = networks.make_vae(config[name])

    def init(key):
        x = jnp.zeros((1, config.data.crop_frames, bands, model.in_channels))
        return model.init(key, x, key)["params"]

    def apply(params, x, key):
        return model.apply({"params": params}, x, key)

    def reconstruct(params, x):
        mu, _ = model.apply({"params": params}, x, method="encode")
        return model.apply({"params": params}, mu, method="decode")

    def eval_fn(params, batch, key):
        del key
        return errors_of(batch[field], reconstruct(params, batch[field]))

    def pictures(params, batch, key):
        del key
        target = batch[field][:PICTURES]
        output = np.asarray(jax.jit(reconstruct)(params, target))
        return {f"clip_{i}": spectrogram_image(output[i][..., :2], target[i][..., :2]) for i in range(len(target))}

    return Task(name, init, loss_of(apply), eval_fn, _scene_batches(config, workdir, name), pictures)


def _mel_vae_task(config: ConfigDict, workdir: Path) -> Task:
    v = config.mel_vae
    loss_of = lambda apply: losses.mel_vae_loss(apply, v.kl_weight, v.diff_weight)
    return _vae_task(config, workdir, "mel_vae", "mel", config.audio.n_mels, loss_of, losses.mel_errors)


def _stft_vae_task(config: ConfigDict, workdir: Path) -> Task:
    v = config.stft_vae
    loss_of = lambda apply: losses.stft_vae_loss(apply, v.kl_weight, v.level_weight, v.cue_weight)
    return _vae_task(config, workdir, "stft_vae", "stft", config.audio.n_bins, loss_of, losses.stft_errors)


def get_tokenizer(config: ConfigDict, workdir: Path) -> Tokenizer:
    """Load <workdir>/tokenizer.json; make it first, from captions of all wordings, if it is not there."""
    path = workdir / "tokenizer.json"
    if not path.exists():
        rng = np.random.default_rng(config.seed)
        texts = [
            make_caption(event, float(rng.integers(0, 360)), rng)
            for label in labels()
            for event in event_wordings(label)
        ]
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        train_tokenizer(texts, config.text.vocab_size).backend.save(str(partial))
        partial.replace(path)
    return load_tokenizer(path)


def _text_encoder_task(config: ConfigDict, workdir: Path) -> Task:
    encoder = networks.make_text_encoder(config.text)
    heads = CaptionHeads(len(labels()))
    tokenizer = get_tokenizer(config, workdir)

    def init(key):
        ids = jnp.zeros((1, config.text.max_length), jnp.int32)
        mask = jnp.ones(ids.shape, bool)
        encoder_params = encoder.init(key, ids, mask)["params"]
        features = jnp.zeros((1, config.text.max_length, config.text.d_model))
        return {"encoder": encoder_params, "heads": heads.init(key, features, mask)["params"]}

    def apply(params, token_ids, text_mask):
        features = encoder.apply({"params": params["encoder"]}, token_ids, text_mask)
        return heads.apply({"params": params["heads"]}, features, text_mask)

    loss_fn = losses.text_encoder_loss(apply)

    def eval_fn(params, batch, key):
        loss, metrics = loss_fn(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed):
        return make_batches(config, "text_encoder", split, seed=seed, tokenizer=tokenizer, train=train)

    return Task("text_encoder", init, loss_fn, eval_fn, batches, None)


def _classifier_task(config: ConfigDict, workdir: Path) -> Task:
    data_dir = config.data.data_dir or workdir / "tfds"
    num_labels = len(SceneSource(data_dir, config.data.dataset, "train", ("label_index",)).labels)
    model = networks.make_classifier(config.classifier, num_labels)

    def init(key):
        return model.init(key, jnp.zeros((1, config.audio.n_frames, config.audio.n_mels)))["params"]

    def apply(params, mel, **kwargs):
        return model.apply({"params": params}, mel, **kwargs)

    def eval_fn(params, batch, key):
        del key
        logits, _ = apply(params, sum_ears(batch["mel"]))
        return {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])}

    loss_fn = losses.classifier_loss(apply, num_labels, config.classifier.mixup)
    return Task("classifier", init, loss_fn, eval_fn, _scene_batches(config, workdir, "classifier"), None)


def _load(workdir: Path, task: str) -> Any:
    try:
        return load_params(workdir / task)[0]
    except (ValueError, FileNotFoundError) as e:
        raise ValueError(f"workdir = {str(workdir)!r}: no trained {task} there; run --task {task} first ({e})") from e


def _diffusion_task(config: ConfigDict, workdir: Path) -> Task:
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"latents_dir = {str(latents_dir)!r}: no cached latents; run dualspec_jax.encode first")
    meta = json.loads(meta_path.read_text())
    mean, std = np.asarray(meta["mean"], np.float32), np.asarray(meta["std"], np.float32)
    tokenizer = get_tokenizer(config, workdir)
    encoder = networks.make_text_encoder(config.text)
    encoder_params = _load(workdir, "text_encoder")["encoder"]
    mel_vae, mel_params = networks.make_vae(config.mel_vae), _load(workdir, "mel_vae")
    unet = networks.make_unet(config.unet)
    d = config.diffusion
    alpha_bar = make_alpha_bar(d.schedule, d.num_steps)
    n_mel = config.mel_vae.latent_channels

    def text_features(token_ids, text_mask):
        return jax.lax.stop_gradient(encoder.apply({"params": encoder_params}, token_ids, text_mask))

    def init(key):
        x = jnp.zeros((1, *networks.latent_shape(config)))
        text = jnp.zeros((1, config.text.max_length, config.text.d_model))
        one = jnp.zeros(1)
        return unet.init(key, x, one, text, jnp.ones(text.shape[:2], bool), one, one > 0)["params"]

    def denoiser(params, x_t, t, text_emb, text_mask, azimuth_deg, has_azimuth):
        return unet.apply({"params": params}, x_t, t, text_emb, text_mask, azimuth_deg, has_azimuth)

    channel_weight = np.repeat([d.mel_weight, d.stft_weight], [n_mel, config.stft_vae.latent_channels])
    loss_fn = losses.diffusion_loss(
        denoiser,
        text_features,
        alpha_bar,
        prediction=d.prediction,
        min_snr_gamma=d.min_snr_gamma,
        channel_weight=channel_weight.astype(np.float32),
        latent_mean=mean,
        latent_std=std,
    )

    def eval_fn(params, batch, key):
        loss, metrics = loss_fn(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed):
        folder = latents_dir / split
        return make_batches(config, "diffusion", split, seed=seed, tokenizer=tokenizer, latents_dir=folder, train=train)

    empty_ids, empty_mask = tokenizer.encode_batch([""] * PICTURES, config.text.max_length)
    scale = np.repeat(
        np.float32([config.sample.guidance_mel, config.sample.guidance_stft]), [n_mel, config.stft_vae.latent_channels]
    )

    @jax.jit
    def sample_mel(params, batch, key):
        condition = {
            "text_emb": text_features(batch["token_ids"], batch["text_mask"]),
            "text_mask": batch["text_mask"],
            "azimuth_deg": batch["azimuth_deg"],
            "has_azimuth": batch["has_azimuth"],
        }
        null = condition | {
            "text_emb": text_features(empty_ids, empty_mask),
            "text_mask": empty_mask,
            "has_azimuth": jnp.zeros(PICTURES, bool),
        }
        keys = jax.random.split(key, PICTURES)
        noise = jax.random.normal(key, batch["latent"].shape)
        guided = guide(lambda x, t, **c: denoiser(params, x, t, **c), condition, null, scale)
        z = sample_latent(guided, noise, keys, alpha_bar, steps=10, prediction=d.prediction)
        z = (z * std + mean)[..., :n_mel]
        return mel_vae.apply({"params": mel_params}, z, method="decode")

    def pictures(params, batch, key):
        first = {name: value[:PICTURES] for name, value in batch.items()}
        output = np.asarray(sample_mel(params, first, key))
        return {f"sample_{i}": spectrogram_image(output[i]) for i in range(PICTURES)}

    return Task("diffusion", init, loss_fn, eval_fn, batches, pictures)
