"""mel_vae | mel_decoder | stft_vae | text_encoder | classifier | localiser | diffusion: how to build each one."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks
from dualspec_jax.checkpoint import latest_step, load_params
from dualspec_jax.clip_bank import ClipBank
from dualspec_jax.config import TASKS
from dualspec_jax.diffusion.guidance import guide
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import sample_latent
from dualspec_jax.input_pipeline import SceneSource, dataset_labels, known_labels, make_batches
from dualspec_jax.models.text_encoder import CaptionHeads
from dualspec_jax.ops.texture import texture_statistics
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.sounds import event_wordings, labels
from dualspec_jax.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

PICTURES = 4  # clips shown at each evaluation
DECODER_PARTS = ("decoder", "post_quant_conv")  # of a VAE's parameters
STATISTICS_CLIPS = 512  # from which the classifier's inputs are scaled


class Model(NamedTuple):
    """What a task computes, without its data: for training, planning and conversion.

    Attributes:
      init: key -> params.
      loss_fn: (params, batch, key, *frozen) -> (loss, metrics), for training.
      init_frozen: key -> trees of arrays that the loss reads and that are not trained.
      batch: {field: jax.ShapeDtypeStruct} of one example, without the batch axis.
      network: the linen module that is trained, in the task's compute dtype.
    """

    init: Callable
    loss_fn: Callable
    init_frozen: Callable
    batch: dict[str, jax.ShapeDtypeStruct]
    network: Any


class Task(NamedTuple):
    """What the loop needs to know of a task.

    Attributes:
      init: key -> params.
      loss_fn: (params, batch, key, *frozen) -> (loss, metrics), for training.
      eval_fn: (params, batch, key, *frozen) -> metrics, on validation batches with the averaged parameters.
      make_batches: (split, train, seed, shard=(0, 1)) -> Grain iterable of NumPy batches, or of a host's part of them.
      pictures: (params, batch, key) -> {name: uint8 image}; None where there is nothing to look at.
      frozen: trees of NumPy arrays that the losses read and that are not trained.
      error: metrics of an evaluation -> what the best checkpoint has least of; None keeps no best checkpoint.
    """

    name: str
    init: Callable
    loss_fn: Callable
    eval_fn: Callable
    make_batches: Callable
    pictures: Callable | None
    frozen: tuple = ()
    error: Callable | None = None


def make_task(config: ConfigDict, name: str, workdir: str | Path) -> Task:
    """Build a task.

    Raises:
      ValueError: unknown task, or what it builds on (data set, latents, trained parts) is missing.
    """
    if name not in TASKS:
        raise ValueError(f"task = {name!r}: must be one of {', '.join(TASKS)}")
    return globals()[f"_{name}_task"](config, Path(workdir))


def make_model(config: ConfigDict, name: str) -> Model:
    """Build what a task computes; needs no files.

    Raises:
      ValueError: unknown task, or the classifier, whose size depends on the data set.
    """
    if name not in MODELS:
        raise ValueError(f"task = {name!r}: must be one of {', '.join(MODELS)}")
    return MODELS[name](config)


def _shape(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _no_frozen(key):
    del key
    return ()


def _loss(metrics):
    return metrics["loss"]


def _scene_batches(config: ConfigDict, workdir: Path, task: str) -> Callable:
    def batches(split, train, seed, shard=(0, 1)):
        data_dir = config.data.data_dir or workdir / "tfds"
        return make_batches(config, task, split, seed=seed, data_dir=data_dir, train=train, shard=shard)

    return batches


def _vae_model(config: ConfigDict, name: str) -> Model:
    v, t = config[name], config.train[name]
    network = networks.make_vae(v, jnp.dtype(t.dtype), t.remat)
    bands = config.audio.n_mels if name == "mel_vae" else config.audio.n_bins
    example = _shape(config.data.crop_frames, bands, v.in_channels)

    def init(key):
        return network.init(key, jnp.zeros((1, *example.shape)), key)["params"]

    def apply(params, x, key):
        return network.apply({"params": params}, x, key)

    if name == "mel_vae":
        loss_fn = losses.mel_vae_loss(apply, v.kl_weight, v.diff_weight)
    else:
        loss_fn = losses.stft_vae_loss(apply, v.kl_weight, v.level_weight, v.cue_weight)
    return Model(init, loss_fn, _no_frozen, {name.removesuffix("_vae"): example}, network)


def _vae_task(config: ConfigDict, workdir: Path, name: str, errors_of: Callable, error: str) -> Task:
    model = _vae_model(config, name)
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

    batches = _scene_batches(config, workdir, name)
    return Task(name, model.init, model.loss_fn, eval_fn, batches, pictures, error=lambda metrics: metrics[error])


def _mel_vae_task(config: ConfigDict, workdir: Path) -> Task:
    return _vae_task(config, workdir, "mel_vae", losses.mel_errors, "log_mel_l1")


def _mel_decoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The Mel-VAE's second stage: what decodes learns on, against a discriminator; what encodes stays."""
    vae, discriminator = networks.make_vae(config.mel_vae), networks.make_discriminator(config)
    vae_params, d = jax.device_get(_load(workdir, "mel_vae")), config.mel_decoder
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

    batches = _scene_batches(config, workdir, "mel_decoder")
    return Task("mel_decoder", init, loss_fn, eval_fn, batches, pictures, (vae_params,))


def load_mel_vae(workdir: Path) -> tuple[Any, int]:
    """Return the Mel-VAE's parameters, with the decoder of the second stage where there is one, and the last step.

    Raises:
      ValueError: no Mel-VAE is trained in the workdir.
    """
    params, step = _load(workdir, "mel_vae"), latest_step(workdir / "mel_vae")
    if latest_step(workdir / "mel_decoder") is not None:
        params, step = params | _load(workdir, "mel_decoder")["decoder"], latest_step(workdir / "mel_decoder")
    return params, step


def _stft_vae_task(config: ConfigDict, workdir: Path) -> Task:
    return _vae_task(config, workdir, "stft_vae", losses.stft_errors, "coherence_weighted")


def get_tokenizer(config: ConfigDict, workdir: Path) -> Tokenizer:
    """Load <workdir>/tokenizer.json; make it first, from captions of all wordings, if it is not there."""
    path = workdir / "tokenizer.json"
    if not path.exists():
        rng = np.random.default_rng(config.seed)
        texts = [
            make_caption(event, float(rng.integers(0, 360)), rng)
            for label in known_labels(config, config.data.data_dir or workdir / "tfds")
            for event in event_wordings(label)
        ]
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        train_tokenizer(texts, config.text.vocab_size).backend.save(str(partial))
        partial.replace(path)
    return load_tokenizer(path)


def _text_encoder_model(config: ConfigDict, num_labels: int | None = None) -> Model:
    encoder = networks.make_text_encoder(config.text, jnp.dtype(config.train.text_encoder.dtype))
    heads = CaptionHeads(len(labels()) if num_labels is None else num_labels)
    length = config.text.max_length

    def init(key):
        ids = jnp.zeros((1, length), jnp.int32)
        mask = jnp.ones(ids.shape, bool)
        encoder_params = encoder.init(key, ids, mask)["params"]
        features = jnp.zeros((1, length, config.text.d_model))
        return {"encoder": encoder_params, "heads": heads.init(key, features, mask)["params"]}

    def apply(params, token_ids, text_mask):
        features = encoder.apply({"params": params["encoder"]}, token_ids, text_mask)
        return heads.apply({"params": params["heads"]}, features, text_mask)

    batch = {
        "token_ids": _shape(length, dtype=jnp.int32),
        "text_mask": _shape(length, dtype=jnp.bool_),
        "label": _shape(dtype=jnp.int32),
        "azimuth_deg": _shape(),
        "has_direction": _shape(dtype=jnp.bool_),
    }
    return Model(init, losses.text_encoder_loss(apply), _no_frozen, batch, encoder)


def _text_encoder_task(config: ConfigDict, workdir: Path) -> Task:
    data_dir = config.data.data_dir or workdir / "tfds"
    model = _text_encoder_model(config, len(known_labels(config, data_dir)))
    tokenizer = get_tokenizer(config, workdir)

    def eval_fn(params, batch, key):
        loss, metrics = model.loss_fn(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(
            config, "text_encoder", split, seed=seed, data_dir=data_dir, tokenizer=tokenizer, train=train, shard=shard
        )

    return Task("text_encoder", model.init, model.loss_fn, eval_fn, batches, None, error=_loss)


def _classifier_task(config: ConfigDict, workdir: Path) -> Task:
    data_dir = config.data.data_dir or workdir / "tfds"
    if config.feeding.source == "render":
        num_labels = len(ClipBank(config.feeding.clip_bank, "train").labels)
    else:
        SceneSource(data_dir, config.data.dataset, "train", ("label_index",))  # a missing data set is named here
        num_labels = len(dataset_labels(config, data_dir))
    c, audio = config.classifier, config.audio
    model = networks.make_classifier(c, num_labels, audio.sample_rate / audio.hop_length)
    batches = _scene_batches(config, workdir, "classifier")

    statistics = jax.jit(functools.partial(texture_statistics, frame_rate=model.frame_rate))
    reader = iter(batches("train", True, config.seed))
    count = -(-STATISTICS_CLIPS // config.train.classifier.batch_size)
    values = np.concatenate([np.asarray(statistics(next(reader)["mel"])) for _ in range(count)])
    reader.close()
    scale = {"center": np.mean(values, axis=0), "spread": np.std(values, axis=0) + 0.05}

    def init(key):
        params = model.init(key, jnp.zeros((1, audio.n_frames // c.pool, audio.n_mels)))["params"]
        return params | {name: jnp.asarray(value) for name, value in scale.items()}

    def apply(params, mel, **kwargs):
        return model.apply({"params": params}, mel, **kwargs)

    def eval_fn(params, batch, key):
        del key
        logits, _ = apply(params, batch["mel"])
        return {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])}

    loss_fn = losses.classifier_loss(apply, num_labels, c.augment)
    return Task("classifier", init, loss_fn, eval_fn, batches, None, error=lambda metrics: -metrics["accuracy"])


def _localiser_task(config: ConfigDict, workdir: Path) -> Task:
    del workdir  # it needs nothing that is there
    model = networks.make_localiser(config.localiser, config.audio)

    def init(key):
        return model.init(key, jnp.zeros((1, config.audio.n_bins, 4)))["params"]

    def apply(params, statistics, **kwargs):
        return model.apply({"params": params}, statistics, **kwargs)

    def plain(params, statistics, **_):
        return model.apply({"params": params}, statistics)

    c = config.localiser
    loss_fn = losses.localiser_loss(apply, c.azimuths, c.label_std_deg)
    valid_loss = losses.localiser_loss(plain, c.azimuths, c.label_std_deg)

    def eval_fn(params, batch, key):
        loss, metrics = valid_loss(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(config, "localiser", split, seed=seed, train=train, shard=shard)

    return Task("localiser", init, loss_fn, eval_fn, batches, None)


def _load(workdir: Path, task: str) -> Any:
    try:
        return load_params(workdir / task)[0]
    except (ValueError, FileNotFoundError) as e:
        raise ValueError(f"workdir = {str(workdir)!r}: no trained {task} there; run --task {task} first ({e})") from e


def _diffusion_model(config: ConfigDict, latent_mean=0.0, latent_std=1.0) -> Model:
    d, dtype = config.diffusion, jnp.dtype(config.train.diffusion.dtype)
    unet = networks.make_unet(config.unet, dtype, config.train.diffusion.remat)
    encoder = networks.make_text_encoder(config.text, dtype)
    latent, length = _shape(*networks.latent_shape(config)), config.text.max_length

    def init(key):
        x = jnp.zeros((1, *latent.shape))
        text = jnp.zeros((1, length, config.text.d_model))
        one = jnp.zeros(1)
        return unet.init(key, x, one, text, jnp.ones(text.shape[:2], bool), one, one > 0)["params"]

    def init_frozen(key):
        ids = jnp.zeros((1, length), jnp.int32)
        return (encoder.init(key, ids, jnp.ones(ids.shape, bool))["params"],)

    def denoiser(params, x_t, t, text_emb, text_mask, azimuth_deg, has_azimuth):
        return unet.apply({"params": params}, x_t, t, text_emb, text_mask, azimuth_deg, has_azimuth)

    def loss_fn(params, batch, key, encoder_params):
        def text_features(token_ids, text_mask):
            return jax.lax.stop_gradient(encoder.apply({"params": encoder_params}, token_ids, text_mask))

        loss_of = losses.diffusion_loss(
            denoiser,
            text_features,
            make_alpha_bar(d.schedule, d.num_steps),
            prediction=d.prediction,
            min_snr_gamma=d.min_snr_gamma,
            channel_weight=_per_channel(config, d.mel_weight, d.stft_weight),
            latent_mean=latent_mean,
            latent_std=latent_std,
        )
        return loss_of(params, batch, key)

    batch = {
        "token_ids": _shape(length, dtype=jnp.int32),
        "text_mask": _shape(length, dtype=jnp.bool_),
        "latent": latent,
        "azimuth_deg": _shape(),
        "has_azimuth": _shape(dtype=jnp.bool_),
    }
    return Model(init, loss_fn, init_frozen, batch, unet)


def _per_channel(config: ConfigDict, mel: float, stft: float) -> np.ndarray:
    return np.repeat(np.float32([mel, stft]), [config.mel_vae.latent_channels, config.stft_vae.latent_channels])


def _diffusion_task(config: ConfigDict, workdir: Path) -> Task:
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"latents_dir = {str(latents_dir)!r}: no cached latents; run dualspec_jax.encode first")
    meta = json.loads(meta_path.read_text())
    mean, std = np.asarray(meta["mean"], np.float32), np.asarray(meta["std"], np.float32)
    tokenizer = get_tokenizer(config, workdir)
    encoder_params = jax.device_get(_load(workdir, "text_encoder")["encoder"])
    mel_vae, mel_params = networks.make_vae(config.mel_vae), load_mel_vae(workdir)[0]
    encoder = networks.make_text_encoder(config.text)
    model = _diffusion_model(config, mean, std)
    d = config.diffusion
    n_mel = config.mel_vae.latent_channels

    def eval_fn(params, batch, key, encoder_params):
        loss, metrics = model.loss_fn(params, batch, key, encoder_params)
        return metrics | {"loss": loss}

    encode = None
    if config.feeding.source == "render":
        vae_params = {"mel_vae": mel_params, "stft_vae": _load(workdir, "stft_vae")}
        encode = functools.partial(jax.jit(networks.make_latent_encoder(config)), vae_params)

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(
            config,
            "diffusion",
            split,
            seed=seed,
            tokenizer=tokenizer,
            latents_dir=latents_dir / split,
            train=train,
            encode=encode,
            shard=shard,
        )

    empty_ids, empty_mask = tokenizer.encode_batch([""] * PICTURES, config.text.max_length)
    scale = _per_channel(config, config.sample.guidance_mel, config.sample.guidance_stft)

    @jax.jit
    def sample_mel(params, encoder_params, mel_params, batch, key):
        text_features = lambda ids, mask: encoder.apply({"params": encoder_params}, ids, mask)
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
        denoiser = lambda x, t, **c: model.network.apply({"params": params}, x, t, **c)
        guided = guide(denoiser, condition, null, scale)
        alpha_bar = make_alpha_bar(d.schedule, d.num_steps)
        z = sample_latent(guided, noise, keys, alpha_bar, steps=10, prediction=d.prediction)
        z = (z * std + mean)[..., :n_mel]
        return mel_vae.apply({"params": mel_params}, z, method="decode")

    def pictures(params, batch, key):
        first = {name: value[:PICTURES] for name, value in batch.items()}
        output = np.asarray(sample_mel(params, encoder_params, mel_params, first, key))
        return {f"sample_{i}": spectrogram_image(output[i]) for i in range(PICTURES)}

    return Task("diffusion", model.init, model.loss_fn, eval_fn, batches, pictures, (encoder_params,), _loss)


MODELS = {
    "mel_vae": functools.partial(_vae_model, name="mel_vae"),
    "stft_vae": functools.partial(_vae_model, name="stft_vae"),
    "text_encoder": _text_encoder_model,
    "diffusion": _diffusion_model,
}
