"""Judges with random weights, small enough for a test."""

from pathlib import Path

import jax.numpy as jnp
from drawn import draw_params
from ml_collections import ConfigDict

from dualspec_jax import networks
from dualspec_jax.event_metrics import save_classifier
from dualspec_jax.network_localiser import save_localiser

FRAME_RATE = 100.0


def save_random_classifier(path: Path, config: ConfigDict, labels) -> None:
    model = networks.make_classifier(config.classifier, len(labels), FRAME_RATE)
    mel = jnp.zeros((1, config.audio.n_frames // config.classifier.pool, config.audio.n_mels))
    params = draw_params(model, mel)["params"]
    save_classifier(path, params, labels, config.classifier, FRAME_RATE)


def save_random_localiser(path: Path, config: ConfigDict, temperature: float = 1.5) -> None:
    model = networks.make_localiser(config.localiser, config.audio)
    params = draw_params(model, jnp.zeros((1, config.audio.n_bins, 4)))["params"]
    save_localiser(path, params, temperature, config.localiser, config.audio)
