"""Name the event in a clip with a trained classifier, kept as one safetensors file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dualspec_jax import networks
from dualspec_jax.bundle import EMBEDDED, flatten, unflatten
from dualspec_jax.config import default
from dualspec_jax.ops.mel import sum_ears

EMBEDDED_CLASSIFIER = EMBEDDED / "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """A trained `models.classifier.EventClassifier`.

    Attributes:
      params: nested dict of float32 arrays.
      labels: names of the K logits.
    """

    model: Any
    params: dict[str, Any]
    labels: tuple[str, ...]

    def logits(self, mel: Float[Array, "B T M 2"]) -> Float[Array, "B K"]:
        """Return the scores of all labels; the two ears are added, so the direction hardly counts."""
        return self.model.apply({"params": self.params}, sum_ears(mel))[0]


def save_classifier(path: str | Path, params: dict[str, Any], labels: Sequence[str], section: ConfigDict) -> None:
    """Write a classifier as float16 safetensors; labels and channels go to the header, as JSON.

    Args:
      params: of `networks.make_classifier(section, len(labels))`.
      section: `config.classifier`.

    Raises:
      ValueError: the number of labels is not that of the network's outputs.
    """
    from safetensors.numpy import save_file

    flat = flatten(jax.tree.map(np.asarray, params))
    outputs = flat["label/bias"].shape[0]
    if outputs != len(labels):
        raise ValueError(f"labels: {len(labels)} of them, but the classifier has {outputs} outputs")
    header = {"labels": json.dumps(list(labels)), "channels": json.dumps(list(section.channels))}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: np.ascontiguousarray(v.astype(np.float16)) for k, v in flat.items()}, partial, metadata=header)
    partial.replace(path)


def load_classifier(path: str | Path | None = None) -> Classifier:
    """Read a classifier written by `save_classifier`; None reads the one embedded in the package.

    Raises:
      ValueError: the file is missing or broken, or its header lacks labels or channels.
    """
    from safetensors import SafetensorError, safe_open

    path = EMBEDDED_CLASSIFIER if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"classifier = {str(path)!r}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            flat = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 - not a dict
        labels, channels = tuple(json.loads(header["labels"])), tuple(json.loads(header["channels"]))
    except (SafetensorError, OSError) as e:
        raise ValueError(f"classifier = {str(path)!r}: not a readable safetensors file ({e})") from e
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"classifier = {str(path)!r}: its header holds no labels and channels ({e})") from e
    if "label/bias" not in flat or flat["label/bias"].shape != (len(labels),):
        raise ValueError(f"classifier = {str(path)!r}: it has not one output for each of its {len(labels)} labels")
    section = default().classifier
    section.channels = channels
    return Classifier(networks.make_classifier(section, len(labels)), unflatten(flat), labels)
