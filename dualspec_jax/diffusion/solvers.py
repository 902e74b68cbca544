"""Samplers as one scan: a solver is a table of linear weights, with one row for each evaluation of the network.

Every method here makes its next point from the present one and the clean latents predicted so far, with weights that
depend on the noise levels alone. They are worked out on the host, in double precision; the scan is the same for all,
so that changing the solver compiles nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dualspec_jax.diffusion.schedule import split_prediction


class Rows(NamedTuple):
    """The table of a solver, S rows.

    Attributes:
      index: place of the row.
      t: training step of the evaluation, in [0, num_train_steps).
      correct: weights of (x, last corrected x, x0, last x0, the x0 before) in the corrected x.
      predict: weights of (corrected x, x0, last x0) in the next x.
      fresh: standard deviation of the noise added to it.
    """

    index: Int[np.ndarray, "S"]
    t: Int[np.ndarray, "S"]
    correct: Float[np.ndarray, "S 5"]
    predict: Float[np.ndarray, "S 3"]
    fresh: Float[np.ndarray, "S"]


def trailing_timesteps(num_train_steps: int, steps: int, spacing: float = 1.0) -> np.ndarray:
    """Return `steps` different integers, falling from num_train_steps - 1: num_train_steps * (1 - u ** spacing) - 1.

    u goes evenly from 0 to just below 1. Spacing 1 is even ("trailing"); above it, more steps lie at high noise, where
    the sound's outline is settled: docs/training.md has what that is worth.

    Source: Lin et al. 2024 (arXiv:2305.08891), section 3.3: sampling starts at the noisiest step. The power is ours.
    """
    places = np.arange(steps)
    t = np.round(num_train_steps * (1.0 - (places / steps) ** spacing)).astype(np.int32) - 1
    return np.minimum.accumulate(t + places.astype(np.int32)) - places.astype(np.int32)


def solver_rows(alpha_bar, timesteps, solver: str = "ddim", eta: float = 0.0, end: float = 1.0) -> Rows:
    """Work out the table of a solver.

    Solvers:
      ddim: first order; the only one with sampling noise. Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
      dpmpp_2m: DPM-Solver++(2M), second order. Lu et al. 2022 (arXiv:2211.01095), algorithm 2.
      unipc: the same predictor, and a corrector of one order more that uses the next evaluation, at no cost: UniPC-2
        with B_2(h). Zhao et al. 2023 (arXiv:2302.04867), algorithms 1 and 2.

    Args:
      alpha_bar: cumulative signal power per training step.
      timesteps: falling training steps at which the network is evaluated.
      eta: 0 is deterministic, 1 has the variance of DDPM.
      end: signal power at the end; 1 is a clean latent, and the step there is of first order, as no slope exists there.

    Raises:
      ValueError: unknown solver, or eta for a solver other than ddim.
    """
    if solver not in _SOLVERS:
        raise ValueError(f"solver = {solver!r}: must be one of {', '.join(_SOLVERS)}")
    if eta and solver != "ddim":
        raise ValueError(f"eta = {eta}: sampling noise needs solver ddim, not {solver}")
    power = np.append(np.asarray(alpha_bar, np.float64)[timesteps], end)
    count = len(timesteps)
    rows = Rows(np.arange(count), np.asarray(timesteps), np.zeros((count, 5)), np.zeros((count, 3)), np.zeros(count))
    rows.correct[:, 0] = 1.0
    _SOLVERS[solver](rows, np.sqrt(power), np.sqrt(1.0 - power), eta)
    return Rows(*(x.astype(np.int32 if x.dtype.kind == "i" else np.float32) for x in rows))


def _ddim(rows: Rows, signal, noise, eta: float) -> None:
    ratio = (signal[:-1] / signal[1:]) ** 2
    rows.fresh[:] = eta * (noise[1:] / noise[:-1]) * np.sqrt(1.0 - ratio)
    direction = np.sqrt(np.maximum(noise[1:] ** 2 - rows.fresh**2, 0.0))
    rows.predict[:, 0] = direction / noise[:-1]
    rows.predict[:, 1] = signal[1:] - direction * signal[:-1] / noise[:-1]


def _half_log_snr(signal, noise) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(signal) - np.log(noise)


def _dpmpp_2m(rows: Rows, signal, noise, eta: float) -> None:
    lam = _half_log_snr(signal, noise)
    h = np.diff(lam)
    rows.predict[:, 0] = noise[1:] / noise[:-1]
    rows.predict[:, 1] = -signal[1:] * np.expm1(-h)
    second = np.flatnonzero(np.isfinite(h))[1:]  # the first row has no past, and a step to a clean latent no slope
    slope = rows.predict[second, 1] * h[second] / (2.0 * h[second - 1])
    rows.predict[second, 1] += slope
    rows.predict[second, 2] = -slope


def _unipc(rows: Rows, signal, noise, eta: float) -> None:
    _dpmpp_2m(rows, signal, noise, eta)
    lam = _half_log_snr(signal, noise)
    for i in range(1, len(rows.t)):
        h = lam[i] - lam[i - 1]
        whole = np.expm1(-h)  # B_2(h), and minus the integral of the exponential over the step
        first = whole / -h - 1.0
        if i == 1:
            old, new = 0.0, 0.5
        else:
            before = (lam[i - 2] - lam[i - 1]) / h
            moments = np.array([first, 2.0 * (first / -h - 0.5)]) / whole
            old, new = np.linalg.solve([[1.0, 1.0], [before, 1.0]], moments)
            old /= before
        gain = -signal[i] * whole
        rows.correct[i] = 0.0, noise[i] / noise[i - 1], gain * new, gain * (1.0 - old - new), gain * old


_SOLVERS = {"ddim": _ddim, "dpmpp_2m": _dpmpp_2m, "unipc": _unipc}


def start_carry(noise: Float[Array, "B t f C"]) -> tuple[Array, ...]:
    """Return what `advance` carries from row to row; its first entry is the latent."""
    return noise, noise, jnp.zeros_like(noise), jnp.zeros_like(noise)


def advance(
    denoiser: Callable,
    carry: tuple[Array, ...],
    keys: Array,
    alpha_bar: Float[Array, "S"] | np.ndarray,
    rows: Rows,
    prediction: str = "v",
) -> tuple[Array, ...]:
    """Go through rows of a table: all at once, or some at a time with the same result.

    Args:
      denoiser: (x_t, t [B]) -> output, guidance included.
      keys: one key per sample, [B]; used only where eta > 0, so a sample does not depend on its batch.
      prediction: what the denoiser returns, "v" or "eps".
    """

    def step(carry, row):
        x, corrected, last, before = carry
        t = jnp.full((x.shape[0],), row.t)
        x0, _ = split_prediction(alpha_bar, x, denoiser(x, t), t, prediction)
        corrected = _mix(row.correct, (x, corrected, x0, last, before))
        fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row.index), x.shape[1:]))(keys)
        following = _mix(row.predict, (corrected, x0, last)) + row.fresh * fresh
        return (following, corrected, x0, last), None

    return jax.lax.scan(step, carry, rows)[0]


def _mix(weights, arrays):
    return sum(weights[i] * x for i, x in enumerate(arrays))


def sample_latent(
    denoiser: Callable,
    noise: Float[Array, "B t f C"],
    keys: Array,
    alpha_bar: Float[Array, "S"] | np.ndarray,
    *,
    steps: int,
    solver: str = "ddim",
    eta: float = 0.0,
    prediction: str = "v",
) -> Float[Array, "B t f C"]:
    """Integrate from standard normal noise to a clean latent; see `solver_rows` and `advance`."""
    rows = solver_rows(alpha_bar, trailing_timesteps(len(alpha_bar), steps), solver, eta)
    return advance(denoiser, start_carry(noise), keys, alpha_bar, rows, prediction)[0]
