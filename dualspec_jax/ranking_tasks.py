"""Tasks of the networks that lead the sampler and choose among its tries: event guide and listener."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import networks, recognition_losses
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.models.event_network import level_free
from dualspec_jax.scene_source import SceneSource
from dualspec_jax.task import Model, Task, loss_of_metrics, no_frozen, scene_batches, shape_of


def event_guide_model(config: ConfigDict, latent_mean=0.0, latent_std=1.0, train: bool = True) -> Model:
    """Return the event guide, with the mean and deviation that Mel latents are normalised by, per channel.

    Args:
      train: False leaves out what is random in the loss.

    Raises:
      ValueError: the config's text encoder tells no events apart.
    """
    event_guide, r = networks.make_event_guide(config), config.event_guide
    t, f, _ = networks.latent_shape(config)
    latent = shape_of(t, f, config.mel_vae.latent_channels)

    def init(key):
        return event_guide.init(key, jnp.zeros((1, *latent.shape)))["params"]

    def apply(params, latent, **kwargs):
        return event_guide.apply({"params": params}, latent, **kwargs)

    loss_fn = recognition_losses.event_guide_loss(apply, latent_mean, latent_std, r.latent_noise, r.mixing, train=train)
    return Model(init, loss_fn, no_frozen, {"latent": latent, "label": shape_of(dtype=jnp.int32)}, event_guide)


def listener_model(config: ConfigDict, train: bool = True) -> Model:
    """Return the listener.

    Args:
      train: False leaves out what is random in the loss.

    Raises:
      ValueError: the config's text encoder tells no events apart.
    """
    listener, c = networks.make_listener(config), config.listener
    mel = shape_of(config.audio.n_frames // c.pool, config.audio.n_mels)

    def init(key):
        return listener.init(key, jnp.zeros((1, *mel.shape, 1)))["params"]

    def apply(params, mel, **kwargs):
        return listener.apply({"params": params}, level_free(mel), **kwargs)

    loss_fn = recognition_losses.listener_loss(apply, c.augment, c.mixing, train=train)
    return Model(init, loss_fn, no_frozen, {"mel": mel, "label": shape_of(dtype=jnp.int32)}, listener)


def event_guide_task(config: ConfigDict, workdir: Path) -> Task:
    """The event guide on cached latents."""
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"latents_dir = {str(latents_dir)!r}: no cached latents; run dualspec_jax.encode first")
    meta, n_mel = json.loads(meta_path.read_text()), config.mel_vae.latent_channels
    scale = [np.asarray(meta[name], np.float32)[:n_mel] for name in ("mean", "std")]

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(
            config,
            "event_guide",
            split,
            seed=seed,
            data_dir=config.data.data_dir or workdir / "tfds",
            latents_dir=latents_dir / split,
            train=train,
            shard=shard,
        )

    return _task(
        "event_guide", event_guide_model(config, *scale), event_guide_model(config, *scale, train=False), batches
    )


def listener_task(config: ConfigDict, workdir: Path) -> Task:
    """The listener on pooled log-mels of the data set."""
    data_dir = config.data.data_dir or workdir / "tfds"
    SceneSource(data_dir, config.data.dataset, "train", ("label_index",))  # a missing data set is named here
    batches = scene_batches(config, workdir, "listener")
    return _task("listener", listener_model(config), listener_model(config, train=False), batches)


def _task(name: str, model: Model, plain: Model, batches) -> Task:
    def eval_fn(params, batch, key):
        loss, metrics = plain.loss_fn(params, batch, key)
        return metrics | {"loss": loss}

    return Task(name, model.init, model.loss_fn, eval_fn, batches, None, error=loss_of_metrics)
