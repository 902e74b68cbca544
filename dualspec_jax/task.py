"""What a task is, and what building one needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dualspec_jax.checkpoint import load_params
from dualspec_jax.input_pipeline import make_batches

PICTURES = 4  # clips shown at each evaluation


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


def shape_of(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    """Return the form of one field of an example."""
    return jax.ShapeDtypeStruct(shape, dtype)


def no_frozen(key):
    """Return the frozen trees of a task without any."""
    del key
    return ()


def loss_of_metrics(metrics):
    """Return the loss, as the error by which the best checkpoint is chosen."""
    return metrics["loss"]


def scene_batches(config: ConfigDict, workdir: Path, task: str) -> Callable:
    """Return `Task.make_batches` for a task that reads the data set's scenes, in <workdir>/tfds by default."""

    def batches(split, train, seed, shard=(0, 1)):
        data_dir = config.data.data_dir or workdir / "tfds"
        return make_batches(config, task, split, seed=seed, data_dir=data_dir, train=train, shard=shard)

    return batches


def load_trained(workdir: Path, task: str) -> Any:
    """Return the averaged parameters of a task's newest checkpoint.

    Raises:
      ValueError: there is none.
    """
    try:
        return load_params(workdir / task)[0]
    except (ValueError, FileNotFoundError) as e:
        raise ValueError(f"workdir = {str(workdir)!r}: no trained {task} there; run --task {task} first ({e})") from e
