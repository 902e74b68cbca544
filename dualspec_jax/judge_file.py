"""Files of the small networks that judge clips: float16 safetensors, with what describes them in the header, as JSON.

The ones that ship with the package lie in `evaluation_models/`: every bundle is judged by the same networks.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dualspec_jax.bundle import flatten, unflatten

EVALUATION_MODELS = Path(__file__).parent / "evaluation_models"


def save_judge(path: str | Path, params: dict[str, Any], header: dict[str, Any]) -> None:
    """Write a parameter tree and its header; the file appears whole or not at all."""
    from safetensors.numpy import save  # not save_file, see `bundle.save_params`

    flat = flatten(jax.tree.map(np.asarray, params))
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    metadata = {name: json.dumps(value) for name, value in header.items()}
    arrays = {k: np.ascontiguousarray(v.astype(np.float16)) for k, v in flat.items()}
    partial.write_bytes(save(arrays, metadata=metadata))
    partial.replace(path)


def load_judge(path: str | Path, kind: str, fields: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (parameters as float32, header) of a file by `save_judge`.

    Args:
      kind: what it is, for messages.
      fields: that the header must have.

    Raises:
      ValueError: the file is missing or broken, or its header lacks a field.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{kind} = {str(path)!r}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 - not a dict
        header = {name: json.loads(metadata[name]) for name in fields}
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{kind} = {str(path)!r}: not a readable safetensors file ({e})") from e
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{kind} = {str(path)!r}: its header holds no {' and '.join(fields)} ({e})") from e
    return unflatten(flat), header
