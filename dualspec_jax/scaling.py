"""Scaling experiments: `python -m dualspec_jax.scaling --grid configs/scaling/cpu.py --workdir W --out runs/scaling`.

Trains every combination of the grid's model sizes, fractions of the data and numbers of steps on the cached latents of
`--workdir`, fits a power law with an irreducible term to the validation losses, and draws it. Writes below `--out`:
`runs/<name>` (one training each), `results.jsonl` (one line for each finished run), `fit.json`, `scaling.png`. The same
command again goes on where it stopped. `--dry-run` prints the training commands, to be run elsewhere.
"""

import importlib.util
import itertools
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.latents import load_latents

AXES = ("parameters", "fraction", "examples_seen")
SMALLEST = 1e-6  # irreducible loss that a fit may give


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
      ValueError: a field of the grid is empty or out of range.
    """
    for name in ("sizes", "fractions", "steps"):
        if not grid[name]:
            raise ValueError(f"grid.{name} = {grid[name]!r}: must not be empty")
    runs = []
    for steps, fraction, size in itertools.product(sorted(grid.steps), sorted(grid.fractions), grid.sizes):
        if not 0 < fraction <= 1:
            raise ValueError(f"grid.fractions = {grid.fractions!r}: must be in (0, 1]")
        overrides = {f"unet.{name}": value for name, value in grid.sizes[size].items()}
        overrides |= {f"train.{grid.task}.{name}": value for name, value in {**grid.fixed, "steps": steps}.items()}
        runs.append(Run(f"{size}_f{fraction:g}_s{steps}", size, fraction, steps, overrides))
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
    config.update_from_flattened_dict(overrides)
    validate(config)
    return config


def prepare(source: Path, folder: Path, fraction: float) -> Path:
    """Make <folder>/latents_f<fraction>, the first scenes of `source`'s latents in a fixed random order; return it.

    Raises:
      ValueError: `source` has no latents.
    """
    if not (source / "train" / "meta.json").is_file():
        raise ValueError(f"workdir: no cached latents at {source}; run dualspec_jax.encode first")
    if fraction == 1:
        return source
    target = folder / f"latents_f{fraction:g}"
    if target.exists():
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


def command(grid: ConfigDict, one: Run, workdir: Path, latents: Path) -> list[str]:
    """Return the training command of a run."""
    fields = {**one.overrides, "data.latents_dir": str(latents)}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    base = [sys.executable, "-m", "dualspec_jax.train", "--config", grid.experiment, "--task", grid.task]
    return [*base, "--workdir", str(workdir), *settings]


def final_loss(folder: Path, steps: int) -> float | None:
    """Return the validation loss at the last step, or None where the run is not complete."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = [line["valid/loss"] for line in lines if line["step"] == steps and "valid/loss" in line]
    return found[-1] if found else None


def law(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return E + sum_i exp(a_i) * x_i ** -b_i, with p = (log E, a_1, b_1, a_2, b_2, ...) and x [runs, axes]."""
    terms = np.exp(p[1::2] - p[2::2] * np.log(x))
    return np.exp(p[0]) + terms.sum(axis=1)


def fit(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit loss = E + sum over axes of A * x ** -b, over the axes of AXES that the results vary.

    Each axis is divided by its smallest value, so that A is what it costs to be there. Huber loss on the logarithm, the
    best of several starts, as Hoffmann et al. 2022 (arXiv:2203.15556, appendix D.3).

    Returns: `irreducible`; `irreducible_resolved`, false where it lies at the fit's lower bound: the runs bend too
    little to tell it; `terms`: {axis: {"scale", "exponent", "unit"}}, `residual` (rms of the logarithm), `runs`.

    Raises:
      ValueError: fewer runs than the law has numbers, nothing varies, or an axis has only two values, which cannot tell
        its exponent from the irreducible term.
    """
    from scipy.optimize import least_squares

    axes = [name for name in AXES if len({r[name] for r in results}) > 1]
    if not axes or len(results) < 2 * len(axes) + 1:
        needed = 2 * len(axes) + 1 if axes else "2"
        raise ValueError(f"results: {len(results)} runs that vary {axes or 'nothing'}; a fit needs at least {needed}")
    for name in axes:
        if len({r[name] for r in results}) == 2:
            raise ValueError(f"results: {name} has two values; a fit needs one, or at least three")
    loss = np.array([r["loss"] for r in results])
    unit = {name: min(r[name] for r in results) for name in axes}
    x = np.array([[r[name] / unit[name] for name in axes] for r in results])
    residuals = lambda p: np.log(law(p, x)) - np.log(loss)
    bounds = ([np.log(SMALLEST), *([-12.0, 0.0] * len(axes))], [np.log(loss.min()), *([5.0, 5.0] * len(axes))])
    best = None
    for level, exponent in itertools.product((0.1, 0.5, 0.9), (0.1, 0.3, 1.0)):
        height = max(np.log(loss.mean() * (1 - level) / len(axes)), -11.0)
        start = [np.log(level * loss.min()), *([height, exponent] * len(axes))]
        options = dict(loss="huber", f_scale=0.01, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000)
        found = least_squares(residuals, start, bounds=bounds, **options)
        best = found if best is None or found.cost < best.cost else best
    p = best.x
    terms = {
        name: {"scale": float(np.exp(p[1 + 2 * i])), "exponent": float(p[2 + 2 * i]), "unit": unit[name]}
        for i, name in enumerate(axes)
    }
    rms = float(np.sqrt(np.mean(residuals(p) ** 2)))
    found = {"irreducible": float(np.exp(p[0])), "irreducible_resolved": bool(np.exp(p[0]) > 10 * SMALLEST)}
    return found | {"terms": terms, "residual": rms, "runs": len(results)}


def predict(fitted: dict[str, Any], point: dict[str, float]) -> float:
    """Return the loss that a fit gives at a point {axis: value}."""
    terms = (t["scale"] * (point[name] / t["unit"]) ** -t["exponent"] for name, t in fitted["terms"].items())
    return fitted["irreducible"] + sum(terms)


def draw(results: list[dict[str, Any]], fitted: dict[str, Any], path: Path) -> None:
    """Save a PNG: for each axis that varies, the runs, and the law along the axis through each of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(4.5 * len(fitted["terms"]), 3.5), layout="constrained")
    for ax, axis in zip(figure.subplots(1, len(fitted["terms"]), squeeze=False)[0], fitted["terms"], strict=True):
        others = [name for name in AXES if name != axis]
        low, high = (f(r[axis] for r in results) for f in (min, max))
        along = np.geomspace(low, high, 50)
        for i, fixed in enumerate(sorted({tuple(r[name] for name in others) for r in results})):
            group = [r for r in results if tuple(r[name] for name in others) == fixed]
            at = dict(zip(others, fixed, strict=True))
            label = ", ".join(f"{name} {value:g}" for name, value in at.items())
            ax.plot([r[axis] for r in group], [r["loss"] for r in group], "o", color=f"C{i % 10}", label=label)
            ax.plot(along, [predict(fitted, at | {axis: x}) for x in along], color=f"C{i % 10}")
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="validation loss")
        ax.xaxis.set_minor_formatter(NullFormatter())
        floor = f"{fitted['irreducible']:.3f}" if fitted["irreducible_resolved"] else "not resolved"
        ax.set_title(f"exponent {fitted['terms'][axis]['exponent']:.2f}, irreducible {floor}")
        ax.legend(fontsize=6, loc="upper right")
    figure.savefig(path, dpi=120)


def measure(grid: ConfigDict, one: Run, folder: Path, latents: Path) -> dict[str, Any] | None:
    """Return the line of results.jsonl of a finished run; None where it is not finished."""
    from dualspec_jax.sizes import abstract_step, count_parameters

    loss = final_loss(folder / grid.task, one.steps)
    if loss is None:
        return None
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
    if grid.task != "diffusion":
        raise ValueError(f"grid.task = {grid.task!r}: must be diffusion")
    runs = expand(grid)
    for one in runs:
        load_experiment(grid, one.overrides)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, one in enumerate(runs):
        latents, folder = prepare(source / "latents", out, one.fraction), out / "runs" / one.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("text_encoder", "mel_vae", "tokenizer.json"):
            if not (source / name).exists():
                raise ValueError(f"--workdir={given.workdir}: no {name} there")
            if not (folder / name).exists():
                (folder / name).symlink_to(source / name)
        words = command(grid, one, folder, latents)
        if given["dry-run"].value:
            print(shlex.join(words))
            continue
        print(f"{one.name} ({number + 1} of {len(runs)})", file=sys.stderr)
        if final_loss(folder / grid.task, one.steps) is None:
            status = subprocess.run(words).returncode
            if status:
                sys.exit(status)
        results.append(measure(grid, one, folder, latents))
        (out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    if results:
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
