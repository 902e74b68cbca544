"""Tasks of the networks that judge clips: classifier and localiser."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import networks, recognition_losses
from dualspec_jax.clip_bank import ClipBank
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.ops.texture import texture_statistics
from dualspec_jax.scene_source import SceneSource, dataset_labels
from dualspec_jax.task import Task, scene_batches

STATISTICS_CLIPS = 512  # from which the classifier's inputs are scaled


def classifier_task(config: ConfigDict, workdir: Path) -> Task:
    """The event classifier on pooled log-mels."""
    data_dir = config.data.data_dir or workdir / "tfds"
    if config.feeding.source == "render":
        num_labels = len(ClipBank(config.feeding.clip_bank, "train").labels)
    else:
        SceneSource(data_dir, config.data.dataset, "train", ("label_index",))  # a missing data set is named here
        num_labels = len(dataset_labels(config, data_dir))
    c, audio = config.classifier, config.audio
    model = networks.make_classifier(c, num_labels, audio.sample_rate / audio.hop_length)
    batches = scene_batches(config, workdir, "classifier")

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

    loss_fn = recognition_losses.classifier_loss(apply, num_labels, c.augment)
    return Task("classifier", init, loss_fn, eval_fn, batches, None, error=lambda metrics: -metrics["accuracy"])


def localiser_task(config: ConfigDict, workdir: Path) -> Task:
    """The second localiser on drawn interaural statistics."""
    del workdir  # it needs nothing that is there
    model = networks.make_localiser(config.localiser, config.audio)

    def init(key):
        return model.init(key, jnp.zeros((1, config.audio.n_bins, 4)))["params"]

    def apply(params, statistics, **kwargs):
        return model.apply({"params": params}, statistics, **kwargs)

    def plain(params, statistics, **_):
        return model.apply({"params": params}, statistics)

    c = config.localiser
    loss_fn = recognition_losses.localiser_loss(apply, c.azimuths, c.label_std_deg)
    valid_loss = recognition_losses.localiser_loss(plain, c.azimuths, c.label_std_deg)

    def eval_fn(params, batch, key):
        loss, metrics = valid_loss(params, batch, key)
        return metrics | {"loss": loss}

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(config, "localiser", split, seed=seed, train=train, shard=shard)

    return Task("localiser", init, loss_fn, eval_fn, batches, None)
