"""Task reranker: which event a Mel latent holds, to lead the sampler and choose among its tries."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import networks, recognition_losses
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.task import Model, Task, loss_of_metrics, no_frozen, shape_of


def reranker_model(config: ConfigDict, latent_mean=0.0, latent_std=1.0, train: bool = True) -> Model:
    """Return the reranker, with the mean and deviation that Mel latents are normalised by, per channel.

    Args:
      train: False leaves out what is random in the loss.

    Raises:
      ValueError: the config's text encoder tells no events apart.
    """
    reranker, r = networks.make_reranker(config), config.reranker
    t, f, _ = networks.latent_shape(config)
    latent = shape_of(t, f, config.mel_vae.latent_channels)

    def init(key):
        return reranker.init(key, jnp.zeros((1, *latent.shape)))["params"]

    def apply(params, latent, **kwargs):
        return reranker.apply({"params": params}, latent, **kwargs)

    loss_fn = recognition_losses.reranker_loss(apply, latent_mean, latent_std, r.latent_noise, r.mixing, train=train)
    return Model(init, loss_fn, no_frozen, {"latent": latent, "label": shape_of(dtype=jnp.int32)}, reranker)


def reranker_task(config: ConfigDict, workdir: Path) -> Task:
    """The reranker on cached latents."""
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"latents_dir = {str(latents_dir)!r}: no cached latents; run dualspec_jax.encode first")
    meta, n_mel = json.loads(meta_path.read_text()), config.mel_vae.latent_channels
    scale = [np.asarray(meta[name], np.float32)[:n_mel] for name in ("mean", "std")]
    model, plain = reranker_model(config, *scale), reranker_model(config, *scale, train=False)

    def eval_fn(params, batch, key):
        loss, metrics = plain.loss_fn(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(
            config,
            "reranker",
            split,
            seed=seed,
            data_dir=config.data.data_dir or workdir / "tfds",
            latents_dir=latents_dir / split,
            train=train,
            shard=shard,
        )

    return Task("reranker", model.init, model.loss_fn, eval_fn, batches, None, error=loss_of_metrics)
