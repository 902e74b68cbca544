"""The trained localiser: where a two-ear clip comes from, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from ml_collections import ConfigDict

from dualspec_jax import networks
from dualspec_jax.config import default
from dualspec_jax.distribution_metrics import softmax
from dualspec_jax.judge_file import EVALUATION_MODELS, load_judge, save_judge
from dualspec_jax.models.localiser import AzimuthNetwork
from dualspec_jax.ops.interaural import interaural_statistics

LOCALISER = EVALUATION_MODELS / "localiser.safetensors"
CONFIDENT_DEG = 10.0  # the confidence is the probability of an error of at most this
PEAK_DEG = 6.0  # azimuths this near to the likeliest one are averaged


@dataclass(frozen=True)
class NetworkLocaliser:
    """A trained `models.localiser.AzimuthNetwork`.

    Attributes:
      params: nested dict of float32 arrays.
      temperature: by which the logits are divided, so that the probabilities are those that came true in validation.
    """

    model: AzimuthNetwork
    params: dict[str, Any]
    temperature: float

    def logits(self, spec: Complex[Array, "B T F 2"]) -> Float[Array, "B A"]:
        """Return the calibrated logits of the azimuths 360 a / A degrees."""
        statistics = interaural_statistics(spec)
        return self.model.apply({"params": self.params}, statistics) / self.temperature


def read_azimuth(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (azimuth in degrees in [0, 360), confidence in [0, 1]) of calibrated logits [n, A].

    The azimuth is the circular mean of the probabilities within PEAK_DEG of the likeliest one. The confidence is the
    probability that this is at most CONFIDENT_DEG wrong, a front/back confusion included.
    """
    p = softmax(logits)
    circle = np.arange(p.shape[-1]) * 360.0 / p.shape[-1]
    apart = lambda center: np.abs((circle - center[:, None] + 180.0) % 360.0 - 180.0)
    near = p * (apart(circle[np.argmax(p, axis=-1)]) <= PEAK_DEG)
    azimuth = np.rad2deg(np.angle(np.sum(near * np.exp(1j * np.deg2rad(circle)), axis=-1))) % 360.0
    return azimuth, np.sum(p * (apart(azimuth) <= CONFIDENT_DEG), axis=-1)


def fit_temperature(logits: np.ndarray, azimuth_deg: np.ndarray) -> float:
    """Return the temperature of the largest likelihood of the true azimuths, between 0.3 and 5.

    Source: Guo et al. 2017 (arXiv:1706.04599).
    """
    step = 360.0 / logits.shape[-1]
    index = np.round(np.asarray(azimuth_deg) / step).astype(int) % logits.shape[-1]
    grid = np.exp(np.linspace(np.log(0.3), np.log(5.0), 60))
    likelihood = [np.mean(np.log(softmax(logits / t)[np.arange(len(index)), index] + 1e-12)) for t in grid]
    return float(grid[int(np.argmax(likelihood))])


def save_localiser(path: str | Path, params: dict[str, Any], temperature: float, section: ConfigDict, audio) -> None:
    """Write a localiser, at most 3 MB.

    Args:
      params: of `networks.make_localiser(section, audio)`.
      section, audio: `config.localiser`, `config.audio`.
    """
    header = {
        "azimuths": section.azimuths,
        "hidden": list(section.hidden),
        "sample_rate": audio.sample_rate,
        "n_fft": audio.n_fft,
        "temperature": temperature,
    }
    save_judge(path, jax.device_get(params), header)


def load_localiser(path: str | Path | None = None) -> NetworkLocaliser:
    """Read a localiser written by `save_localiser`; None reads the one of the package.

    Raises:
      ValueError: the file is missing or broken, or its header lacks a field.
    """
    path = LOCALISER if path is None else Path(path)
    fields: Sequence[str] = ("azimuths", "hidden", "sample_rate", "n_fft", "temperature")
    params, header = load_judge(path, "localiser", fields)
    config = default()
    config.localiser.update(azimuths=header["azimuths"], hidden=tuple(header["hidden"]))
    config.audio.update(sample_rate=header["sample_rate"], n_fft=header["n_fft"])
    model = networks.make_localiser(config.localiser, config.audio)
    return NetworkLocaliser(model, jax.tree.map(jnp.asarray, params), header["temperature"])
