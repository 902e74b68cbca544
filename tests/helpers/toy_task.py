"""A linear regression in the form of a task, for the tests of the training loop; a program, so that it can be killed.

python tests/helpers/toy_task.py WORKDIR STEPS
  [--stop_after N] [--slow SECONDS] [--save_every N] [--process I N ADDRESS]
"""

import argparse
import time
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import config as config_lib

NAME = "mel_vae"  # any task that config.default() has


class ToyTask(NamedTuple):
    """The fields of `dualspec_jax.tasks.Task`, without what that imports."""

    name: str
    init: object
    loss_fn: object
    eval_fn: object
    make_batches: object
    pictures: object
    frozen: tuple = ()
    error: object = lambda metrics: metrics["mse"]


def toy_config(**overrides) -> ConfigDict:
    """Return a config whose every event (log, evaluation, checkpoint) comes within a few steps."""
    config = config_lib.default()
    fields = dict(
        steps=6, batch_size=8, log_every=2, eval_every=4, eval_batches=2, save_every=4, lr=0.1, warmup_steps=2
    )
    config.train[NAME].update(fields | overrides)
    return config


def toy_task(nan_from: int | None = None, n_valid: int = 16, slow: float = 0.0) -> ToyTask:
    """Return the task; its loss uses the key, and its batches use Grain's randomness, so that a resume can go wrong.

    Args:
      nan_from: `example` of the batch element from which on the loss is NaN.
      n_valid: examples of the validation split.
      slow: seconds to wait at every training example.
    """

    def make_batches(split, train, seed, shard=(0, 1)):
        index, count = shard
        dataset = grain.MapDataset.source(np.arange(64 if train else n_valid))
        dataset = dataset.shuffle(seed).repeat() if train else dataset

        def element(index, rng):
            time.sleep(slow if train else 0.0)
            return {"x": rng.normal(size=8).astype(np.float32), "example": np.int32(index)}

        dataset = dataset.random_map(element, seed=seed)
        if count > 1:
            dataset = grain.MapDataset.mix(
                [dataset[row::8] for row in range(index * 8 // count, (index + 1) * 8 // count)]
            )
        return dataset.to_iter_dataset(grain.ReadOptions(1, 8)).batch(8 // count, drop_remainder=True)

    def init(key):
        return {"dense": {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.zeros(4)}}

    def loss_fn(params, batch, key):
        noise = 0.1 * jax.random.normal(key, (batch["x"].shape[0], 4))
        y = batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]
        mse = jnp.mean((y - batch["x"][:, :4] + noise) ** 2)
        example_mean = jnp.mean(batch["example"].astype(jnp.float32))
        if nan_from is not None:
            mse = jnp.where(jnp.any(batch["example"] == nan_from), jnp.nan, mse)
        return mse, {"mse": mse, "example_mean": example_mean}

    def eval_fn(params, batch, key):
        return {"mse": loss_fn(params, batch, key)[0]}

    def pictures(params, batch, key):
        level = np.abs(np.asarray(params["dense"]["kernel"]))
        return {"kernel": np.repeat((255 * level / level.max()).astype(np.uint8)[..., None], 3, axis=-1)}

    return ToyTask(NAME, init, loss_fn, eval_fn, make_batches, pictures)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("steps", type=int)
    parser.add_argument("--stop_after", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--process", nargs=3, metavar=("I", "N", "ADDRESS"))
    args = parser.parse_args()
    if args.process:
        index, count, address = args.process
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(index))
    from dualspec_jax.loop import train

    config = toy_config(steps=args.steps, save_every=args.save_every)
    train(config, toy_task(slow=args.slow), args.workdir, args.stop_after)


if __name__ == "__main__":
    main()
