"""Save and restore state, data position, randomness and config together, with Orbax.

A checkpoint is <workdir>/<task>/checkpoints/<step>: items `state` (TrainState), `position` (data iterator and the
loop's running sums, JSON), `rng` (JSON) and `config` (JSON). Orbax writes it under another name and renames it when it
is complete, so a run that is killed leaves no half checkpoint behind. The state with the lowest validation error is in
<workdir>/<task>/best, in the same form.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from dualspec_jax import config as config_lib

FOLDER = "checkpoints"

# What a task's parameters and data depend on; a task that is not listed depends on every section.
_SECTIONS = {
    "mel_vae": ("mel_vae",),
    "mel_decoder": ("mel_vae", "mel_decoder"),
    "stft_vae": ("stft_vae",),
    "stft_decoder": ("stft_vae", "stft_decoder"),
    "vocoder": ("mel_vae", "vocoder"),
    "text_encoder": ("text",),
    "reader": ("text", "reader"),
    "event_guide": ("mel_vae", "text", "event_guide"),
    "listener": ("text", "listener"),
    "classifier": ("classifier",),
    "localiser": ("localiser",),
    "diffusion": ("mel_vae", "stft_vae", "text", "unet", "diffusion"),
}
# Fields that may change between two runs of one training.
_FREE_TRAIN = (
    "steps",
    "lr",
    "warmup_steps",
    "final_lr_ratio",
    "log_every",
    "eval_every",
    "eval_batches",
    "save_every",
    "keep",
    "accumulate",
    "dtype",
    "remat",
)
_FREE_SECTIONS = ("sample", "sampler", "mesh", "feeding")
_FREE_DATA = ("data_dir", "latents_dir", "num_threads", "prefetch")


class Restored(NamedTuple):
    """What a checkpoint holds for the loop.

    Attributes:
      state: TrainState, on the shardings of the abstract state.
      position: the JSON-like dict that was saved.
      key: the base key.
    """

    state: Any
    position: dict[str, Any]
    key: jax.Array


class Checkpoints:
    """The checkpoints of one task's training.

    Args:
      folder: <workdir>/<task>.
      config: experiment; saved with each checkpoint and compared at restore.
      task: its name.
      keep: newest checkpoints kept.
    """

    def __init__(self, folder: str | Path, config: ConfigDict, task: str, keep: int):
        self._config = json.loads(json.dumps(config.to_dict()))
        self._task = task
        # What a killed run left half-written has another name; the manager removes it (cleanup_tmp_directories).
        # By default processes meet at barriers named by the step alone: where two managers saved the same step at once,
        # a process waited for the wrong one, for ever.
        meeting = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=Path(folder).name)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True, multiprocessing_options=meeting
        )
        self._manager = ocp.CheckpointManager((Path(folder) / FOLDER).absolute(), options=options)

    def save(self, step: int, state: Any, position: dict[str, Any], key: jax.Array) -> None:
        """Copy the state from the devices now and write it in the background; no-op if this step is saved already."""
        if step in self._manager.all_steps():
            return
        rng = {"impl": str(jax.random.key_impl(key)), "key_data": np.asarray(jax.random.key_data(key)).tolist()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(json.loads(json.dumps(position))),  # a copy: it is written later
            rng=ocp.args.JsonSave(rng),
            config=ocp.args.JsonSave({"task": self._task, "config": self._config}),
        )
        self._manager.save(step, args=items, force=True)

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """Restore the newest checkpoint onto the shardings of `abstract_state`; None when there is none.

        Raises:
          ValueError: it cannot be read, or was made with another config or task; the message lists the fields that
            differ. The number of steps, the learning rate, and what only concerns logging, saving or reading speed
            may change.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = Path(self._manager.directory) / str(step)
        json_items = {name: ocp.args.JsonRestore() for name in ("position", "rng", "config")}
        with _reading(where):
            saved = self._manager.restore(step, args=ocp.args.Composite(**json_items))
        _check_config(where, saved["config"], self._config, self._task)
        with _reading(where):
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))
        key_data = jnp.asarray(saved["rng"]["key_data"], jnp.uint32)
        key = jax.random.wrap_key_data(key_data, impl=saved["rng"]["impl"])
        return Restored(state["state"], saved["position"], key)

    def delete_from(self, step: int) -> None:
        """Delete the checkpoints of this step and later ones."""
        for later in [n for n in self._manager.all_steps() if n >= step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, and end the threads."""
        self.wait()
        self._manager.close()


class BestCheckpoint:
    """The checkpoint with the lowest validation error: <folder>/best/checkpoints/<step>, in the form of the others.

    Attributes:
      error: of the one that is kept; infinite when there is none.

    Raises:
      ValueError: the one there cannot be read, or was made with another config.
    """

    def __init__(self, folder: Path, config: ConfigDict, task: str):
        self._folder, self._config, self._task = folder / "best", config, task
        self._checkpoints: Checkpoints | None = None  # made when needed: it makes a folder and starts threads
        step = latest_step(self._folder)
        self.error = float("inf")
        if step is not None:
            path = self._folder / FOLDER / str(step)
            with _reading(path):
                self.error = json.loads((path / "position" / "metadata").read_text())["error"]
                saved = json.loads((path / "config" / "metadata").read_text())
            _check_config(path, saved, json.loads(json.dumps(config.to_dict())), task)

    def offer(self, step: int, state: Any, error: float, key: jax.Array) -> None:
        """Keep this state if its error is lower than that of the one that is kept."""
        if not error < self.error:
            return
        self.error = error
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self._folder, self._config, self._task, keep=1)
        self._checkpoints.delete_from(step)  # left by a run that went further and was resumed from before
        self._checkpoints.save(step, state, {"iterator": None, "window": None, "error": error}, key)

    def wait(self) -> None:
        """Wait until it is on disk."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def close(self) -> None:
        """Wait until it is on disk, and end the threads."""
        if self._checkpoints is not None:
            self._checkpoints.close()


@contextlib.contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Whatever Orbax raises at a damaged checkpoint becomes a ValueError that names it."""
    try:
        yield
    except Exception as e:
        said = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        raise ValueError(f"checkpoint {where} cannot be read; delete it to go on without it ({said})") from e


def _check_config(where: Path, saved: dict[str, Any], config: dict[str, Any], task: str) -> None:
    differences = config_differences(saved, {"task": task, "config": config})
    if differences:
        rule = "take another workdir, or undo"
        raise ValueError(f"checkpoint {where} was made with another config; {rule}: {'; '.join(differences)}")


def config_differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """List the fields that forbid going on with a checkpoint, as `field: checkpoint 1, config 2`.

    A field that the checkpoint does not know is newer than it; its default is what the checkpoint was made with.

    Args:
      saved, wanted: {"task": name, "config": nested dict}.
    """
    if saved["task"] != wanted["task"]:
        return [f"task: checkpoint {saved['task']}, config {wanted['task']}"]
    old = _flatten(_relevant(_with_defaults(saved["config"]), saved["task"]))
    new = _flatten(_relevant(wanted["config"], wanted["task"]))
    absent = "<absent>"
    return [
        f"{name}: checkpoint {old.get(name, absent)!r}, config {new.get(name, absent)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, absent) != new.get(name, absent)
    ]


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Add the fields that a saved config lacks, with their defaults."""

    def fill(default, saved):
        if not isinstance(default, dict):
            return saved
        return default | {name: fill(default.get(name), value) for name, value in saved.items()}

    return fill(json.loads(json.dumps(config_lib.default().to_dict())), config)


def _relevant(config: dict[str, Any], task: str) -> dict[str, Any]:
    others = {name for sections in _SECTIONS.values() for name in sections} - set(_SECTIONS.get(task, ()))
    kept = {name: value for name, value in config.items() if name not in _FREE_SECTIONS}
    if task in _SECTIONS:
        kept = {name: value for name, value in kept.items() if name not in others}
    train = config["train"][task] if task in config["train"] else config["train"]
    kept["train"] = {task: {k: v for k, v in train.items() if k not in _FREE_TRAIN}}
    if "data" in kept:
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in _FREE_DATA}
    return kept


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def latest_step(workdir_task: str | Path) -> int | None:
    """Return the step of the newest complete checkpoint in <workdir>/<task>, or None; writes nothing."""
    folder = Path(workdir_task) / FOLDER
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def load_params(workdir_task: str | Path, which: str = "ema_params") -> tuple[Any, ConfigDict]:
    """Load the parameters of the newest checkpoint, and the config it was made with; writes nothing.

    Fields that are newer than the checkpoint have their defaults in that config.

    Needs neither the model nor the optimizer; the arrays go to the default device, whatever mesh they came from.

    Args:
      workdir_task: <workdir>/<task>.
      which: `ema_params` (averaged) or `params`.

    Raises:
      ValueError: unknown `which`, no checkpoint there, or one that cannot be read.
    """
    if which not in ("ema_params", "params"):
        raise ValueError(f"which = {which!r}: must be 'ema_params' or 'params'")
    step = latest_step(workdir_task)
    if step is None:
        raise ValueError(f"no checkpoint in {Path(workdir_task) / FOLDER}")
    path = (Path(workdir_task) / FOLDER / str(step)).absolute()
    handler = ocp.PyTreeCheckpointHandler()
    with _reading(path):
        tree = handler.metadata(path / "state").tree[which]
        args = ocp.args.PyTreeRestore(
            item={which: jax.tree.map(lambda _: 0, tree)},
            restore_args={which: jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)},
            partial_restore=True,
        )
        params = jax.tree.map(jnp.asarray, handler.restore(path / "state", args=args)[which])
        saved = json.loads((path / "config" / "metadata").read_text())
    config = _with_defaults(saved["config"])
    return params, ConfigDict({name: _tuples(value) for name, value in config.items()}).lock()


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into the tuples that the config had."""
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
