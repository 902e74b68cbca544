"""Parameters and FLOPs of an experiment: `python -m dualspec_jax.sizes --config configs/base.py`; needs no data.

FLOPs are those of the lowered program of one update, as XLA's cost analysis counts them before it optimises: matrix
products and convolutions at two per multiply-add, padding not counted; without what rematerialisation computes again.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.models.cpu import accelerator_forms
from dualspec_jax.optimizer import make_optimizer
from dualspec_jax.task import Model
from dualspec_jax.tasks import MODELS, make_model
from dualspec_jax.train_step import init_state, make_train_step


def abstract_step(config: ConfigDict, task: str, wrap: Callable = lambda fn: fn) -> tuple[Model, Any, tuple]:
    """Return (model, update, its abstract arguments (state, batch, key, *frozen)) of a task; uses no memory.

    Args:
      wrap: applied to the loss function, such as `sharding.with_whole_weights` for a mesh.

    Raises:
      ValueError: see `tasks.make_model`.
    """
    model, c = make_model(config, task), config.train[task]
    tx, _ = make_optimizer(c)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda k: init_state(model.init, tx, k), key)
    batch = {name: jax.ShapeDtypeStruct((c.batch_size, *x.shape), x.dtype) for name, x in model.batch.items()}
    step = make_train_step(wrap(model.loss_fn), tx, c.ema_decay, c.accumulate)
    return model, step, (state, batch, key, *jax.eval_shape(model.init_frozen, key))


def count_parameters(tree: Any) -> int:
    """Return the number of elements of all arrays of a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def step_flops(config: ConfigDict, task: str, remat: bool = False) -> float:
    """Return the FLOPs of one update of a task with its whole batch; with `remat`, what is computed twice counts."""
    config = copy.deepcopy(config)
    config.train[task].update(remat=remat, accumulate=1)  # a loop's body would count once
    _, step, arguments = abstract_step(config, task)
    with accelerator_forms():
        return float(jax.jit(step).lower(*arguments).cost_analysis()["flops"])


def table(config: ConfigDict, tasks: tuple[str, ...]) -> str:
    """Return a table of tasks: parameters, batch size, FLOPs of one update."""
    rows = ["| task | parameters | batch | FLOPs per step |", "|---|---|---|---|"]
    for task in tasks:
        _, _, (state, *_) = abstract_step(config, task)
        count, flops = count_parameters(state.params), step_flops(config, task)
        rows.append(f"| {task} | {count / 1e6:.1f} M | {config.train[task].batch_size} | {flops:.3g} |")
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    if not given.config:
        raise ValueError("--config is required, for example --config configs/base.py")
    validate(given.config)
    events = given.config.text.event_codes  # without them these two have nothing to name
    tasks = tuple(given.tasks or (task for task in MODELS if events or task not in ("event_guide", "listener")))
    for task in tasks:
        if task not in MODELS:
            raise ValueError(f"--tasks={task}: must be one of {', '.join(MODELS)}")
    print(table(given.config, tasks))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_list("tasks", None, "What to count (default: every network that the config has).")
    run(main)
