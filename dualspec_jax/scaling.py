"""Scaling experiments: `python -m dualspec_jax.scaling --grid configs/scaling/cpu.py --workdir W --out runs/scaling`.

Trains every combination of the grid's model sizes, fractions of the data and numbers of steps on the cached latents of
`--workdir`, fits a power law with an irreducible term to the validation losses, and draws it. Writes below `--out`:
`runs/<name>` (one training each; `run.json` there tells with what), `results.jsonl` (one line for each finished run),
`fit.json`, `scaling.png`. Stopped by Ctrl-C or SIGTERM, it lets the training save; the same command again goes on from
there. A grid may grow, but a run that has begun keeps its settings. `--dry-run` prints the training commands, to be run
elsewhere.
"""

import importlib.util
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.latents import load_latents
from dualspec_jax.metrics_log import read_lines
from dualspec_jax.scaling_fit import draw, fit

# Fields of train.<task> that do not change a run's loss.
_FREE = ("log_every", "eval_every", "save_every", "keep", "remat")

_GRID = {  # field: (whether a value is right, the rule)
    "experiment": (lambda v: isinstance(v, str), "must be the path of an experiment's config"),
    "task": (lambda v: v == "diffusion", "must be diffusion"),
    "fixed": (lambda v: isinstance(v, ConfigDict), "must be fields of train.diffusion"),
    "sizes": (
        lambda v: isinstance(v, ConfigDict) and len(v) > 0 and all(isinstance(size, ConfigDict) for size in v.values()),
        "must be one or more names, each with fields of unet",
    ),
    "fractions": (
        lambda v: _is_list(v) and all(isinstance(x, (int, float)) and 0 < x <= 1 for x in v),
        "must be one or more numbers in (0, 1], in a tuple",
    ),
    "steps": (
        lambda v: _is_list(v) and all(isinstance(x, int) and x >= 1 for x in v),
        "must be one or more whole numbers of at least 1, in a tuple",
    ),
}


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0


class Run(NamedTuple):
    """One point of a grid.

    Attributes:
      overrides: {field of the experiment: value}, latents_dir excepted.
    """

    name: str
    size: str
    fraction: float
    steps: int
    overrides: dict[str, Any]


def expand(grid: ConfigDict) -> list[Run]:
    """Return the runs of a grid, small ones first.

    Raises:
      ValueError: a field of the grid is missing, empty, of another type or out of range, or a value is there twice.
    """
    for name, (is_right, rule) in _GRID.items():
        if not is_right(grid.get(name)):
            raise ValueError(f"grid.{name} = {grid.get(name)!r}: {rule}")
    runs = []
    for steps, fraction, size in itertools.product(sorted(grid.steps), sorted(grid.fractions), grid.sizes):
        overrides = {f"unet.{name}": value for name, value in grid.sizes[size].items()}
        overrides |= {f"train.{grid.task}.{name}": value for name, value in {**grid.fixed, "steps": steps}.items()}
        runs.append(Run(f"{size}_f{fraction:g}_s{steps}", size, fraction, steps, overrides))
    if len({one.name for one in runs}) < len(runs):
        fields = " or ".join(f"grid.{name} = {grid[name]!r}" for name in ("fractions", "steps"))
        raise ValueError(f"{fields}: must not have a value twice")
    return runs


def load_experiment(grid: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Return the experiment's config with overrides, validated.

    Raises:
      ValueError: no such experiment, or the overrides make it invalid.
    """
    path = Path(grid.experiment)
    if not path.is_file():
        raise ValueError(f"grid.experiment = {grid.experiment!r}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for name, value in overrides.items():
        try:
            config.update_from_flattened_dict({name: value})
        except (KeyError, TypeError) as e:
            rule = "no such field" if isinstance(e, KeyError) else e
            raise ValueError(f"config.{name} = {value!r}: {rule}") from None
    validate(config)
    return config


def prepare(source: Path, folder: Path, fraction: float) -> Path:
    """Make <folder>/latents_f<fraction>, the first scenes of `source`'s latents in a fixed random order; return it.

    Raises:
      ValueError: `source` has no latents, or the folder that is there was made from others.
    """
    if not (source / "train" / "meta.json").is_file():
        raise ValueError(f"workdir: no cached latents at {source}; run dualspec_jax.encode first")
    if fraction == 1:
        return source
    target = folder / f"latents_f{fraction:g}"
    if target.exists():
        _check_link(target / "valid", source / "valid")
        return target
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "train").mkdir(parents=True)
    (partial / "valid").symlink_to((source / "valid").absolute())
    latents = load_latents(source / "train")
    count = len(latents)
    kept = np.sort(np.random.default_rng(0).permutation(count)[: max(1, round(fraction * count))])
    latents.write_subset(partial / "train", kept)
    shutil.copyfile(source / "train" / "meta.json", partial / "train" / "meta.json")
    partial.rename(target)
    return target


def _check_link(link: Path, target: Path) -> None:
    if link.resolve() != target.resolve():
        raise ValueError(f"{link} = {link.resolve()}: must be {target}; take another --out or the old --workdir")


def set_up(grid: ConfigDict, one: Run, source: Path, out: Path) -> tuple[Path, Path]:
    """Make the folder of a run, with links to what it needs of `source`; return it and the run's latents.

    Raises:
      ValueError: `source` lacks something, or what is there was made from another one, or with other settings.
    """
    latents, folder = prepare(source / "latents", out, one.fraction), out / "runs" / one.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("text_encoder", "mel_vae", "tokenizer.json"):
        if not (source / name).exists():
            raise ValueError(f"--workdir={source}: no {name} there")
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(source / name)
        _check_link(folder / name, source / name)
    keep_settings(folder, grid.task, load_experiment(grid, one.overrides))
    return folder, latents


def keep_settings(folder: Path, task: str, config: ConfigDict) -> None:
    """Write <folder>/run.json, what a run is made with; where the run has begun, check that it still is.

    Raises:
      ValueError: the run was begun with other settings; the message lists the fields that differ.
    """
    path = folder / "run.json"
    now = {"task": task, "config": json.loads(json.dumps(config.to_dict()))}
    if not (folder / task).exists():
        path.write_text(json.dumps(now, indent=1) + "\n")
        return
    from dualspec_jax.checkpoint import config_differences

    rule = "undo, delete that folder or take another --out"
    if not path.is_file():
        raise ValueError(f"{folder}: nothing tells what this run was made with; {rule}")
    made = json.loads(path.read_text())
    old, new = made["config"]["train"][task], now["config"]["train"][task]
    changed = [name for name in old if name not in _FREE and old[name] != new.get(name)]
    differences = {f"train.{task}.{name}: checkpoint {old[name]!r}, config {new.get(name)!r}" for name in changed}
    differences |= set(config_differences(made, now))
    if differences:
        raise ValueError(f"{folder}: this run was made with another config; {rule}: {'; '.join(sorted(differences))}")


def command(grid: ConfigDict, one: Run, workdir: Path, latents: Path) -> list[str]:
    """Return the training command of a run."""
    fields = {**one.overrides, "data.latents_dir": str(latents)}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    base = [sys.executable, "-m", "dualspec_jax.train", "--config", grid.experiment, "--task", grid.task]
    return [*base, "--workdir", str(workdir), *settings]


def final_loss(folder: Path, steps: int) -> float | None:
    """Return the validation loss at the last step, or None where the run is not complete.

    Raises:
      ValueError: the loss was not finite.
    """
    path = folder / "metrics.jsonl"
    lines = read_lines(path, steps)
    found = [line["valid/loss"] for line in lines if line["step"] == steps and "valid/loss" in line]
    if found and found[-1] is None:
        raise ValueError(f"{path}: valid/loss = null at step {steps}: must be a finite number")
    return found[-1] if found else None


def train(words: list[str]) -> int:
    """Run a training command; return its exit status, or 128 + n where signal n stopped it.

    SIGINT, SIGTERM and SIGHUP become one SIGTERM to the training, which saves and exits; a second would kill it. In a
    session of its own, it does not get the terminal's Ctrl-C as well.
    """
    came = []
    ours = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        ours.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in ours}
    try:
        child, told = subprocess.Popen(words, start_new_session=True), False
        while child.poll() is None:
            if came and not told:
                child.terminate()
                told = True
            time.sleep(0.1)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + came[0] if came else child.returncode


def measure(grid: ConfigDict, one: Run, folder: Path, latents: Path) -> dict[str, Any]:
    """Return the line of results.jsonl of a finished run.

    Raises:
      ValueError: it is not finished, or its loss is not finite.
    """
    from dualspec_jax.sizes import abstract_step, count_parameters

    loss = final_loss(folder / grid.task, one.steps)
    if loss is None:
        raise ValueError(f"{folder}: no valid/loss at step {one.steps}: the run is not finished")
    config = load_experiment(grid, one.overrides)
    _, _, (state, *_) = abstract_step(config, grid.task)
    return {
        "name": one.name,
        "size": one.size,
        "parameters": count_parameters(state.params),
        "fraction": one.fraction,
        "scenes": len(load_latents(latents / "train")),
        "steps": one.steps,
        "examples_seen": one.steps * config.train[grid.task].batch_size,
        "loss": loss,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("grid", "workdir", "out"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    grid, source, out = given.grid, Path(given.workdir).absolute(), Path(given.out).absolute()
    runs = expand(grid)
    for one in runs:
        load_experiment(grid, one.overrides)
    out.mkdir(parents=True, exist_ok=True)
    places = [set_up(grid, one, source, out) for one in runs]
    if given["dry-run"].value:
        for one, place in zip(runs, places, strict=True):
            print(shlex.join(command(grid, one, *place)))
        return
    results = []
    for number, (one, (folder, latents)) in enumerate(zip(runs, places, strict=True)):
        print(f"{one.name} ({number + 1} of {len(runs)})", file=sys.stderr)
        if final_loss(folder / grid.task, one.steps) is None:
            status = train(command(grid, one, folder, latents))
            if status:
                sys.exit(status)
        results.append(measure(grid, one, folder, latents))
        for name in ("fit.json", "scaling.png"):  # of other results
            (out / name).unlink(missing_ok=True)
        (out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    fitted = fit(results)
    (out / "fit.json").write_text(json.dumps(fitted, indent=1) + "\n")
    draw(results, fitted, out / "scaling.png")
    print(json.dumps(fitted, indent=1))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("grid", None, "A file in configs/scaling/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of an experiment with text_encoder, mel_vae and latents.")
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_bool("dry-run", False, "Print the training commands and run none.")
    run(main)
