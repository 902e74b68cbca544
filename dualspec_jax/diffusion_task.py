"""Task diffusion: the denoiser of both latents."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks
from dualspec_jax.diffusion.guidance import guide
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import sample_latent
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.task import PICTURES, Model, Task, load_trained, loss_of_metrics, shape_of
from dualspec_jax.text_task import get_tokenizer
from dualspec_jax.vae_tasks import load_vae


def diffusion_model(config: ConfigDict, latent_mean=0.0, latent_std=1.0) -> Model:
    """Return the denoiser, with the mean and deviation that latents are normalised by, per channel."""
    d, dtype = config.diffusion, jnp.dtype(config.train.diffusion.dtype)
    unet = networks.make_unet(config.unet, dtype, config.train.diffusion.remat)
    encoder = networks.make_text_encoder(config.text, dtype)
    latent, length = shape_of(*networks.latent_shape(config)), config.text.max_length

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
        def text_features(token_ids, text_mask, key):
            keep = jax.random.bernoulli(key, 1.0 - d.words_dropped, token_ids.shape[:1]) if d.words_dropped else None
            return jax.lax.stop_gradient(encoder.apply({"params": encoder_params}, token_ids, text_mask, keep))

        loss_of = losses.diffusion_loss(
            denoiser,
            text_features,
            make_alpha_bar(d.schedule, d.num_steps),
            prediction=d.prediction,
            min_snr_gamma=d.min_snr_gamma,
            channel_weight=_per_channel(config, d.mel_weight, d.stft_weight),
            latent_mean=latent_mean,
            latent_std=latent_std,
            static_weight=d.static_weight,
        )
        return loss_of(params, batch, key)

    batch = {
        "token_ids": shape_of(length, dtype=jnp.int32),
        "text_mask": shape_of(length, dtype=jnp.bool_),
        "latent": latent,
        "azimuth_deg": shape_of(),
        "has_azimuth": shape_of(dtype=jnp.bool_),
    }
    return Model(init, loss_fn, init_frozen, batch, unet)


def _per_channel(config: ConfigDict, mel: float, stft: float) -> np.ndarray:
    return np.repeat(np.float32([mel, stft]), [config.mel_vae.latent_channels, config.stft_vae.latent_channels])


def diffusion_task(config: ConfigDict, workdir: Path) -> Task:
    """The denoiser on cached or rendered latents, with the trained text encoder."""
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"latents_dir = {str(latents_dir)!r}: no cached latents; run dualspec_jax.encode first")
    meta = json.loads(meta_path.read_text())
    mean, std = np.asarray(meta["mean"], np.float32), np.asarray(meta["std"], np.float32)
    tokenizer = get_tokenizer(config, workdir)
    encoder_params = jax.device_get(load_trained(workdir, "text_encoder")["encoder"])
    mel_vae, mel_params = networks.make_vae(config.mel_vae), load_vae(workdir, "mel_vae")
    encoder = networks.make_text_encoder(config.text)
    model = diffusion_model(config, mean, std)
    d = config.diffusion
    n_mel = config.mel_vae.latent_channels

    def eval_fn(params, batch, key, encoder_params):
        loss, metrics = model.loss_fn(params, batch, key, encoder_params)
        return metrics | {"loss": loss}

    encode = None
    if config.feeding.source == "render":
        vae_params = {"mel_vae": mel_params, "stft_vae": load_trained(workdir, "stft_vae")}
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
        n = len(batch["latent"])
        null = condition | {
            "text_emb": text_features(empty_ids[:n], empty_mask[:n]),
            "text_mask": empty_mask[:n],
            "has_azimuth": jnp.zeros(n, bool),
        }
        keys = jax.random.split(key, n)
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
        return {f"sample_{i}": spectrogram_image(mel) for i, mel in enumerate(output)}

    return Task("diffusion", model.init, model.loss_fn, eval_fn, batches, pictures, (encoder_params,), loss_of_metrics)
