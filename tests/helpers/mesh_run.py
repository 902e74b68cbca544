"""Train the tiny diffusion model on one mesh after the other; print losses and bytes per device as one line of JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/helpers/mesh_run.py STEPS 1x1x1 2x2x2 ...
  [--accumulate N] [--dtype D] [--remat] [--process I N ADDRESS]
"""

import argparse
import json
import sys

import jax
import numpy as np

BATCH = 8


def run(config, steps: int, mesh) -> dict:
    """Return {"losses": [...], "bytes": {part: bytes on one device}} of the training that `loop.train` does."""
    from drawn import draw

    from dualspec_jax.optimizer import make_optimizer
    from dualspec_jax.sharding import (
        batch_sharding,
        bytes_per_device,
        infer_sharding,
        place,
        place_batch,
        replicated,
        with_whole_weights,
    )
    from dualspec_jax.tasks import make_model
    from dualspec_jax.train_step import init_state, make_train_step

    c = config.train.diffusion
    model, (tx, _) = make_model(config, "diffusion"), make_optimizer(c)
    key = jax.random.key(0)
    state = jax.device_get(init_state(lambda k: draw(jax.eval_shape(model.init, k)), tx, key))
    frozen = draw(jax.eval_shape(model.init_frozen, key))
    shardings = infer_sharding((state, frozen), mesh, config.mesh.min_shard_size)
    state, frozen = place((state, frozen), shardings)
    size = {name: bytes_per_device(getattr(state, name)) for name in ("params", "ema_params", "opt_state")}
    loss_fn = with_whole_weights(model.loss_fn, mesh, config.mesh.min_shard_size)
    step = jax.jit(
        make_train_step(loss_fn, tx, c.ema_decay, c.accumulate),
        in_shardings=(shardings[0], batch_sharding(mesh), replicated(mesh), *shardings[1]),
        out_shardings=(shardings[0], replicated(mesh)),
        donate_argnums=0,
    )
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        batch = {}
        for name, x in model.batch.items():
            kind = {np.dtype(np.int32): lambda s: rng.integers(0, 800, s), np.dtype(bool): lambda s: np.ones(s)}
            batch[name] = kind.get(x.dtype, rng.standard_normal)((BATCH, *x.shape)).astype(x.dtype)
        state, metrics = step(state, place_batch(batch, mesh), key, *frozen)
        losses.append(float(metrics["loss"]))
    return {"losses": losses, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("meshes", nargs="+")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--process", nargs=3, metavar=("I", "N", "ADDRESS"))
    args = parser.parse_args()
    if args.process:
        index, count, address = args.process
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(index))
    from tiny import tiny_config

    from dualspec_jax.sharding import make_mesh

    config = tiny_config()
    config.mesh.min_shard_size = 64
    config.train.diffusion.update(batch_size=BATCH, steps=100, warmup_steps=2, lr=1e-3)
    config.train.diffusion.update(accumulate=args.accumulate, dtype=args.dtype, remat=args.remat)
    results = {}
    for name in args.meshes:
        data, fsdp, tensor = map(int, name.split("x"))
        devices = jax.devices()[: data * fsdp * tensor]
        mesh = make_mesh(BATCH // args.accumulate, fsdp, tensor, devices, data)
        results[name] = run(config, args.steps, mesh)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
