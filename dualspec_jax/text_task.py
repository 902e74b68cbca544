"""Tasks text_encoder, which learns what captions name, with its tokenizer, and reader, which tells their direction."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks, recognition_losses
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.models.text_encoder import CaptionHeads
from dualspec_jax.scene_source import known_labels
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.sounds import event_wordings, labels
from dualspec_jax.task import Model, Task, load_trained, loss_of_metrics, no_frozen, shape_of
from dualspec_jax.tokenizer import Tokenizer, load_tokenizer, train_tokenizer


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


def text_encoder_model(config: ConfigDict, num_labels: int | None = None) -> Model:
    """Return the text encoder with its heads, for that many labels (default: those of `sounds.json`).

    Raises:
      ValueError: more labels than `config.text.event_codes` has room for.
    """
    encoder = networks.make_text_encoder(config.text, jnp.dtype(config.train.text_encoder.dtype))
    num_labels, codes = len(labels()) if num_labels is None else num_labels, config.text.event_codes
    if codes and num_labels >= codes:
        raise ValueError(f"config.text.event_codes = {codes}: must be above the number of labels, {num_labels}")
    heads = CaptionHeads(0 if codes else num_labels)
    length = config.text.max_length

    def init(key):
        ids = jnp.zeros((1, length), jnp.int32)
        mask = jnp.ones(ids.shape, bool)
        encoder_params = encoder.init(key, ids, mask)["params"]
        features = jnp.zeros((1, length, config.text.d_model))
        return {"encoder": encoder_params, "heads": heads.init(key, features, mask)["params"]}

    def apply(params, token_ids, text_mask):
        features = encoder.apply({"params": params["encoder"]}, token_ids, text_mask, with_events=bool(codes))
        features, events = features if codes else (features, None)
        label, direction, azimuth = heads.apply({"params": params["heads"]}, features, text_mask)
        return events if codes else label, direction, azimuth

    return Model(init, losses.text_encoder_loss(apply, bool(codes)), no_frozen, _caption_batch(length), encoder)


def _caption_batch(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "token_ids": shape_of(length, dtype=jnp.int32),
        "text_mask": shape_of(length, dtype=jnp.bool_),
        "label": shape_of(dtype=jnp.int32),
        "azimuth_deg": shape_of(),
        "has_direction": shape_of(dtype=jnp.bool_),
    }


def reader_model(config: ConfigDict) -> Model:
    """Return the reader of directions, on the features of a frozen text encoder."""
    encoder, reader = networks.make_text_encoder(config.text), networks.make_reader(config)
    length, r = config.text.max_length, config.reader

    def init(key):
        return reader.init(key, jnp.zeros((1, length, config.text.d_model)), jnp.ones((1, length), bool))["params"]

    def init_frozen(key):
        ids = jnp.zeros((1, length), jnp.int32)
        return (encoder.init(key, ids, jnp.ones(ids.shape, bool))["params"],)

    def apply(params, token_ids, text_mask, encoder_params):
        features = encoder.apply({"params": encoder_params}, token_ids, text_mask)
        return reader.apply({"params": params}, jax.lax.stop_gradient(features), text_mask)

    loss_fn = recognition_losses.reader_loss(apply, r.azimuths, r.label_std_deg)
    return Model(init, loss_fn, init_frozen, _caption_batch(length), reader)


def text_encoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The text encoder on captions drawn from the grammar."""
    model = text_encoder_model(config, len(known_labels(config, config.data.data_dir or workdir / "tfds")))
    return _caption_task(config, workdir, "text_encoder", model)


def reader_task(config: ConfigDict, workdir: Path) -> Task:
    """The reader of directions on the same captions, with the trained text encoder."""
    encoder_params = jax.device_get(load_trained(workdir, "text_encoder")["encoder"])
    return _caption_task(config, workdir, "reader", reader_model(config), (encoder_params,))


def _caption_task(config: ConfigDict, workdir: Path, name: str, model: Model, frozen: tuple = ()) -> Task:
    data_dir = config.data.data_dir or workdir / "tfds"
    tokenizer = get_tokenizer(config, workdir)

    def eval_fn(params, batch, key, *frozen):
        loss, metrics = model.loss_fn(params, batch, key, *frozen)
        return metrics | {"loss": loss}

    def batches(split, train, seed, shard=(0, 1)):
        return make_batches(
            config, name, split, seed=seed, data_dir=data_dir, tokenizer=tokenizer, train=train, shard=shard
        )

    return Task(name, model.init, model.loss_fn, eval_fn, batches, None, frozen, loss_of_metrics)
