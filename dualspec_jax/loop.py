"""The only loop with side effects: batches, checkpoints, metrics, evaluation, logging."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dualspec_jax.checkpoint import BestCheckpoint, Checkpoints
from dualspec_jax.lock import alone_in
from dualspec_jax.metrics_log import Clock, MetricsLog, Window
from dualspec_jax.models import cpu
from dualspec_jax.optimizer import make_optimizer
from dualspec_jax.picture import save_png
from dualspec_jax.sharding import (
    batch_sharding,
    gather,
    host_share,
    infer_sharding,
    make_mesh,
    place,
    place_batch,
    replicated,
    with_whole_weights,
)
from dualspec_jax.signals import StopSignals
from dualspec_jax.train_step import TrainState, init_state, make_train_step


def train(config: ConfigDict, task: Any, workdir: str | Path, stop_after: int | None = None) -> TrainState:
    """Train a task to config.train[task.name].steps, from its newest checkpoint if there is one.

    Writes to <workdir>/<task>: `checkpoints/`, `metrics.jsonl`, TensorBoard events and `pictures/`. A run that was
    stopped goes on from its exact position: same next batch, same key, same running sums. The state with the lowest
    `task.error` so far, if the task has one, is kept in `best/`, in the same form. On SIGTERM or SIGINT it saves
    and leaves with SystemExit 143 or 130 after the step, compilation or picture that is under way.

    Args:
      task: a `tasks.Task`.
      stop_after: save and return after this many steps of this call; None = at the end.

    Raises:
      ValueError: the data is empty, a checkpoint cannot be read or was made with another config, or another process
        trains in the folder.
      FloatingPointError: a metric is not finite; the last checkpoint from before is kept.
    """
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after = {stop_after}: must be at least 1")
    folder = Path(workdir) / task.name
    with alone_in(folder):
        return _train(config, task, folder, stop_after)


def _train(config: ConfigDict, task: Any, folder: Path, stop_after: int | None) -> TrainState:
    c = config.train[task.name]
    tx, schedule = make_optimizer(c)
    mesh = mesh_of(config, task.name)
    init_key, base_key, eval_key = make_keys(config.seed)

    def init(key):
        return init_state(task.init, tx, key)

    abstract = jax.eval_shape(init, init_key)
    shardings = infer_sharding(abstract, mesh, config.mesh.min_shard_size)
    frozen_shardings = infer_sharding(task.frozen, mesh, config.mesh.min_shard_size)
    frozen = place(task.frozen, frozen_shardings)
    whole = lambda fn: with_whole_weights(fn, mesh, config.mesh.min_shard_size)
    train_step = jax.jit(
        make_train_step(whole(task.loss_fn), tx, c.ema_decay, c.accumulate),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), *frozen_shardings),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    eval_fn = jax.jit(whole(task.eval_fn))

    share = host_share(mesh, c.batch_size)
    batches = iter(task.make_batches("train", True, config.seed, share))
    checkpoints = Checkpoints(folder, config, task.name, c.keep)
    best = BestCheckpoint(folder, config, task.name)
    sharded = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    restored = checkpoints.restore_latest(sharded)
    if restored is None:
        state, step, window = jax.jit(init, out_shardings=shardings)(init_key), 0, Window()
    else:
        state, base_key = restored.state, restored.key
        step, window = int(state.step), Window(restored.position["window"])
        if restored.position["iterator"] is not None:  # None: parameters of elsewhere, no batch was read yet
            check_workers(restored.position.get("workers", config.feeding.num_workers), config.feeding.num_workers)
            batches.set_state(move_position(restored.position["iterator"], restored.position.get("hosts", 1), share[1]))
    last = c.steps if stop_after is None else min(c.steps, step + stop_after)
    log = MetricsLog(folder, step, write=jax.process_index() == 0)
    if step in log.evaluated and task.error is not None:  # killed while the best state was written?
        best.offer(step, state, task.error(log.evaluated[step]), base_key)
    clock = Clock()
    pending = None  # (step, metrics) dispatched last and not yet looked at

    def fetch() -> None:
        """Take in the metrics of the pending step."""
        nonlocal pending
        if pending is None:
            return
        number, metrics = pending
        pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", *values):
            if not np.isfinite(values[name]):
                raise FloatingPointError(f"{task.name}: {name} = {values[name]} at step {number}")
        window.add(values)
        bar.update(1)
        if number % c.log_every == 0 or number == c.steps:
            means = window.take()
            bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
            log.train(number, {"lr": float(schedule(number - 1)), **clock.rates(), **means})
            clock.restart()

    with (
        StopSignals() as signals,
        tqdm(
            total=c.steps,
            initial=step,
            unit="step",
            desc=task.name,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # seconds: in a file, every refresh is a line
            disable=jax.process_index() != 0,
        ) as bar,
    ):
        try:
            while True:
                interrupted = signals.agreed(step)
                stopping = interrupted or step >= last
                saving = stopping or step % c.save_every == 0
                evaluating = (step % c.eval_every == 0 or step == c.steps) and step not in log.evaluated
                if step > 0 and (saving or evaluating):
                    fetch()
                    if saving:
                        best.wait()  # else a run that goes on from here might miss it
                        position = {"iterator": batches.get_state(), "hosts": share[1], "window": window.sums}
                        position["workers"] = config.feeding.num_workers
                        checkpoints.save(step, state, position, base_key)
                    if evaluating and not interrupted:
                        metrics, first = evaluate(config, task, eval_fn, state, mesh, eval_key, frozen, signals)
                        if signals.at_once:
                            continue  # to stop at this very step; the resumed run evaluates
                        draw(task, state.ema_params, first, eval_key, folder / "pictures", step)
                        log.valid(step, metrics)
                        if task.error is not None:
                            best.offer(step, state, task.error(metrics), base_key)
                    clock.restart()
                if stopping:
                    break
                with clock.waiting():
                    try:
                        batch = place_batch(next(batches), mesh, share[1])
                    except StopIteration:
                        raise ValueError(f"{task.name}: the training data ended after {step} batches") from None
                with cpu.long_runs():
                    state, metrics = train_step(state, batch, base_key, *frozen)
                step += 1
                clock.steps += 1
                fetch()
                pending = (step, metrics)
        finally:
            checkpoints.close()
            best.close()
            batches.close()
            log.close()
    if signals.number:
        if step > 0:
            print(f"{task.name}: saved at step {step}; the same command again goes on from there", file=sys.stderr)
        sys.exit(128 + signals.number)
    return state


def move_position(state: Any, before: int, now: int) -> Any:
    """Return a Grain iterator's state for a batch that is read in `now` parts, from that of `before` parts.

    Raises:
      ValueError: the state is that of worker processes, which count by themselves.
    """
    if before == now:
        return state
    if set(state) != {"next_index"}:
        rule = f"with worker processes, a run goes on with the number of hosts it was saved with, {before}"
        raise ValueError(f"hosts = {now}: {rule}")
    return {"next_index": state["next_index"] * before // now}


def check_workers(before: int, now: int) -> None:
    """Raise ValueError if a run that was read by `before` worker processes is to go on with another number."""
    if before != now:
        raise ValueError(f"feeding.num_workers = {now}: a run goes on with the number that it was saved with, {before}")


def make_keys(seed: int) -> jax.Array:
    """Return the keys of a training: for the parameters, the steps and the evaluations."""
    return jax.random.split(jax.random.key(seed), 3)


def mesh_of(config: ConfigDict, task: str) -> jax.sharding.Mesh:
    """Return the mesh of `config.mesh` for the batches of a task."""
    c, m = config.train[task], config.mesh
    return make_mesh(c.batch_size // c.accumulate, m.fsdp, m.tensor, data=m.data)


def evaluate(
    config: ConfigDict,
    task: Any,
    eval_fn: Any,
    state: TrainState,
    mesh: Any,
    key: jax.Array,
    frozen: tuple,
    signals: StopSignals,
) -> tuple[dict[str, float], Any]:
    """Return the mean metrics over the first validation batches, and the first batch; the same keys every time.

    Returns early, with what there is, when a signal comes.

    Raises:
      ValueError: there is no validation batch.
    """
    batches = iter(task.make_batches("valid", False, config.seed))
    window, first = Window(), None
    for i in range(config.train[task.name].eval_batches):
        batch = next(batches, None)
        if batch is None or signals.at_once:
            break
        first = batch if first is None else first
        metrics = eval_fn(state.ema_params, place_batch(batch, mesh), jax.random.fold_in(key, i), *frozen)
        window.add({name: float(value) for name, value in jax.device_get(metrics).items()})
    batches.close()
    if first is None and not signals.at_once:
        raise ValueError(f"{task.name}: the validation split has no batch (eval_batches, or the split, is empty)")
    return window.take(), first


def draw(task: Any, ema_params: Any, batch: Any, key: jax.Array, folder: Path, step: int) -> None:
    """Save the task's pictures as <folder>/<name>_<step>.png, from the first process only."""
    if task.pictures is None:
        return
    ema_params = gather(ema_params)  # a program over the devices of all processes cannot be run by one of them
    if jax.process_index() != 0:
        return
    for name, image in task.pictures(ema_params, batch, key).items():
        save_png(folder / f"{name}_{step}.png", image)


def save_start(config: ConfigDict, task: str, workdir: Path, params: Any) -> None:
    """Write parameters that come from elsewhere as the checkpoint of step 0; the optimizer starts afresh."""
    c = config.train[task]
    init_key, base_key, _ = make_keys(config.seed)
    state = init_state(lambda key: params, make_optimizer(c)[0], init_key)
    checkpoints = Checkpoints(workdir / task, config, task, c.keep)
    checkpoints.save(0, state, {"iterator": None, "window": None}, base_key)
    checkpoints.close()
