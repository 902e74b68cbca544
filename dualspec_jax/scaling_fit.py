"""Fit validation losses of runs of several sizes by a power law with an irreducible term, and draw it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

AXES = ("parameters", "fraction", "examples_seen")
SMALLEST = 1e-6  # irreducible part of the lowest loss that a fit may give
CONFIDENCE = 0.95  # of its interval
EXACT = 1e-4  # fits whose rms residuals differ by less than this are equally good, also where there is no noise


def law(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return E + sum_i exp(a_i) * x_i ** -b_i, with p = (log E, a_1, b_1, a_2, b_2, ...) and x [runs, axes]."""
    terms = np.exp(p[1::2] - p[2::2] * np.log(x))
    return np.exp(p[0]) + terms.sum(axis=1)


def slopes(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the derivatives [runs, numbers of p] of the logarithm of `law`."""
    terms = np.exp(p[1::2] - p[2::2] * np.log(x))
    found = np.empty((len(x), len(p)))
    found[:, 0], found[:, 1::2], found[:, 2::2] = np.exp(p[0]), terms, -np.log(x) * terms
    return found / law(p, x)[:, None]


def solve(loss: np.ndarray, x: np.ndarray, between: tuple[float, float], levels: tuple[float, ...]) -> Any:
    """Return SciPy's best result `.x`, `.cost` for `law`, with log E in `between`.

    Huber loss on the logarithm, the best of several starts, as Hoffmann et al. 2022 (arXiv:2203.15556, appendix D.3).

    Args:
      loss, x: [runs] and [runs, axes]; 1 is the lowest of each.
      levels: E of the starts.
    """
    from scipy.optimize import least_squares

    axes = x.shape[1]
    bounds = [between[0], *([-12.0, 0.0] * axes)], [between[1], *([5.0, 5.0] * axes)]
    options = dict(loss="huber", f_scale=0.01, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000)
    found = []
    for level, exponent in itertools.product(levels, (0.1, 0.3, 1.0)):
        height = np.log(np.clip(loss.mean() * (1 - level) / axes, np.exp(-11), np.exp(4)))
        start = [np.log(level), *([height, exponent] * axes)]
        residuals = lambda p: np.log(law(p, x)) - np.log(loss)
        found.append(least_squares(residuals, start, jac=lambda p: slopes(p, x), bounds=bounds, **options))
    return min(found, key=lambda one: one.cost)


def irreducible_interval(loss: np.ndarray, x: np.ndarray, best: Any) -> tuple[float, float]:
    """Return the lowest and highest E that explain the losses about as well as the best fit, 0 if none is too low.

    A profile: with E given, the rest is fitted anew. By an F-test with `CONFIDENCE`, where Huber's loss stands for the
    squares, E is rejected if that costs too much. As many numbers as runs leave no noise to compare with: no E is.

    Args:
      loss, x, best: as of `solve`.
    """
    from scipy.stats import f

    spare = len(loss) - len(best.x)
    if spare == 0:
        return 0.0, 1.0
    limit = best.cost * (1 + f.ppf(CONFIDENCE, 1, spare) / spare) + len(loss) * EXACT**2 / 2

    def explains(e: float) -> bool:
        between = (np.log(e) - 1e-9, np.log(e) + 1e-9)  # SciPy wants room
        return solve(loss, x, between, (e,)).cost <= limit

    def last(good: float, bad: float) -> float:
        for _ in range(8):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if explains(middle) else (good, middle)
        return good

    e = float(np.exp(best.x[0]))
    return 0.0 if explains(SMALLEST) else last(e, SMALLEST), 1.0 if explains(1.0) else last(e, 1.0)


def fit(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit loss = E + sum over axes of A * x ** -b, over the axes of AXES that the results vary.

    Each axis is divided by its smallest value, so that A is what it costs to be there.

    Returns: `irreducible`; `irreducible_interval`, [low, high], see that function; `irreducible_resolved`, false where
    it goes down to 0: the runs bend too little to tell E; `terms`: {axis: {"scale", "exponent", "unit"}}, `residual`
    (rms of the logarithm), `runs`.

    Raises:
      ValueError: fewer runs than the law has numbers, nothing varies, an axis has only two values, which cannot tell
        its exponent from the irreducible term, or a loss is not a positive number.
    """
    for line, r in enumerate(results, 1):
        if not 0 < r["loss"] < math.inf:
            raise ValueError(f"results, line {line}: loss = {r['loss']!r}: must be positive and finite")
    axes = [name for name in AXES if len({r[name] for r in results}) > 1]
    needed = 2 * max(len(axes), 1) + 1
    if not axes or len(results) < needed:
        rule = f"a fit needs at least {needed}, with three values of what varies"
        raise ValueError(f"results: {len(results)} runs that vary {axes or 'nothing'}; {rule}")
    for name in axes:
        if len({r[name] for r in results}) == 2:
            raise ValueError(f"results: {name} has two values; a fit needs one, or at least three")
    loss, x = np.array([r["loss"] for r in results]), np.array([[r[name] for name in axes] for r in results])
    lowest, unit = float(loss.min()), x.min(axis=0)
    loss, x = loss / lowest, x / unit
    best = solve(loss, x, (np.log(SMALLEST), 1e-9), (0.1, 0.5, 0.9))
    low, high = irreducible_interval(loss, x, best)
    p = best.x
    terms = {
        name: {"scale": lowest * float(np.exp(a)), "exponent": float(b), "unit": float(u)}
        for name, a, b, u in zip(axes, p[1::2], p[2::2], unit, strict=True)
    }
    return {
        "irreducible": lowest * float(np.exp(p[0])),
        "irreducible_interval": [lowest * low, lowest * high],
        "irreducible_resolved": low > 0,
        "terms": terms,
        "residual": float(np.sqrt(np.mean((np.log(law(p, x)) - np.log(loss)) ** 2))),
        "runs": len(results),
    }


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
