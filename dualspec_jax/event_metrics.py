"""Name the event in a clip with a trained classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dualspec_jax import networks
from dualspec_jax.config import default
from dualspec_jax.judge_file import EVALUATION_MODELS, load_judge, save_judge
from dualspec_jax.models.classifier import EventClassifier
from dualspec_jax.ops.mel import sum_ears
from dualspec_jax.ops.texture import pool_frames

CLASSIFIER = EVALUATION_MODELS / "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """A trained `models.classifier.EventClassifier`.

    Attributes:
      params: nested dict of float32 arrays.
      labels: names of the K logits.
      pool: frames averaged before the network.
    """

    model: EventClassifier
    params: dict[str, Any]
    labels: tuple[str, ...]
    pool: int

    def __call__(self, mel: Float[Array, "B T M 2"]) -> tuple[Float[Array, "B K"], Float[Array, "B D"]]:
        """Return the scores of all labels and the embedding; the ears are added, so the direction hardly counts."""
        return self.model.apply({"params": self.params}, pool_frames(sum_ears(mel), self.pool))


def save_classifier(
    path: str | Path, params: dict[str, Any], labels: Sequence[str], section: ConfigDict, frame_rate: float
) -> None:
    """Write a classifier, at most 8 MB.

    Args:
      params: of `networks.make_classifier(section, len(labels), frame_rate)`.
      section: `config.classifier`.
      frame_rate: of the log-mel before pooling, frames per second.

    Raises:
      ValueError: the number of labels is not that of the network's outputs.
    """
    outputs = params["label"]["bias"].shape[0]
    if outputs != len(labels):
        raise ValueError(f"labels: {len(labels)} of them, but the classifier has {outputs} outputs")
    header = {"labels": list(labels), "hidden": list(section.hidden), "pool": section.pool, "frame_rate": frame_rate}
    save_judge(path, jax.device_get(params), header)


def load_classifier(path: str | Path | None = None) -> Classifier:
    """Read a classifier written by `save_classifier`; None reads the one of the package.

    Raises:
      ValueError: the file is missing or broken, or its header lacks labels or sizes.
    """
    path = CLASSIFIER if path is None else Path(path)
    params, header = load_judge(path, "classifier", ("labels", "hidden", "pool", "frame_rate"))
    labels = tuple(header["labels"])
    if params.get("label", {}).get("bias") is None or params["label"]["bias"].shape != (len(labels),):
        raise ValueError(f"classifier = {str(path)!r}: it has not one output for each of its {len(labels)} labels")
    section = default().classifier
    section.update(hidden=tuple(header["hidden"]), pool=header["pool"])
    return Classifier(
        networks.make_classifier(section, len(labels), header["frame_rate"]), params, labels, section.pool
    )
