"""A model to ship: a folder of config.json, safetensors, tokenizer.json and MODEL_CARD.md."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import config as config_lib
from dualspec_jax.config_rules import validate
from dualspec_jax.tokenizer import Tokenizer, load_tokenizer

EMBEDDED = Path(__file__).parent / "embedded"
PARTS = ("mel_vae", "stft_vae", "text_encoder", "unet")
# It can do without these; the second is that of `diffusion.direction_prior`.
MORE_PARTS = ("vocoder", "direction", "reader", "event_guide", "listener")
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
      params: {part: nested dict of float32 arrays}, of PARTS and of those of MORE_PARTS that it has.
      latent_mean, latent_std: per channel of the joint latent [C].
      labels: sounds the model was trained on.
      steps: {part: training steps in all}; empty where the bundle does not say.
      digest: SHA-256 of config.json, which names the SHA-256 of every other file.
    """

    path: Path
    config: ConfigDict
    params: dict[str, Any]
    tokenizer: Tokenizer
    latent_mean: np.ndarray
    latent_std: np.ndarray
    labels: tuple[str, ...]
    steps: dict[str, int]
    digest: str


def flatten(params: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """Return {"a/b/kernel": array} of a nested dict."""
    flat = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    """Invert `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def save_params(path: Path, params: dict, dtype=np.float16) -> None:
    """Write a parameter tree as safetensors, cast to dtype."""
    from safetensors.numpy import save  # not save_file: that makes files which their owner alone can read

    path.write_bytes(save({name: np.ascontiguousarray(value.astype(dtype)) for name, value in flatten(params).items()}))


def load_params_file(path: Path) -> dict:
    """Read a parameter tree written by `save_params`, as float32.

    Raises:
      ValueError: missing or broken file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise ValueError(f"bundle file {str(path)!r}: missing")
    try:
        flat = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"bundle file {str(path)!r}: not a readable safetensors file ({e})") from e
    return unflatten({name: value.astype(np.float32) for name, value in flat.items()})


def save_bundle(
    path: Path,
    config: ConfigDict,
    params: dict[str, Any],
    tokenizer_json: str,
    latent_mean: np.ndarray,
    latent_std: np.ndarray,
    labels: tuple[str, ...],
    model_card: str,
    steps: dict[str, int] | None = None,
) -> str:
    """Write a bundle folder, complete or not at all; return its digest.

    Raises:
      ValueError: the folder exists already.
    """
    if path.exists():
        raise ValueError(f"bundle = {str(path)!r}: exists already; choose a new folder")
    partial = path.with_name(path.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    parts = [*PARTS, *(part for part in MORE_PARTS if part in params)]
    for part in parts:
        save_params(partial / f"{part}.safetensors", params[part])
    (partial / "tokenizer.json").write_text(tokenizer_json)
    (partial / "MODEL_CARD.md").write_text(model_card)
    names = [f"{part}.safetensors" for part in parts] + ["tokenizer.json"]
    sections = ("audio", "mel_vae", "stft_vae", "vocoder", "text", "reader", "event_guide", "listener")
    sections += ("unet", "diffusion", "sample", "sampler")
    content = {
        "format": FORMAT,
        "config": {name: config[name].to_dict() for name in sections},
        "latent_mean": [float(x) for x in latent_mean],
        "latent_std": [float(x) for x in latent_std],
        "labels": list(labels),
        "steps": steps or {},
        "files": {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in names},
    }
    text = json.dumps(content, indent=1)
    (partial / "config.json").write_text(text)
    partial.rename(path)
    return hashlib.sha256(text.encode()).hexdigest()


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Load a bundle folder; None loads the one embedded in the package.

    Every file is checked against the SHA-256 in config.json before it is used.

    Raises:
      ValueError: the folder or a file of it is missing, broken, changed, or of another format.
    """
    path = EMBEDDED if path is None else Path(path)
    config_path = path / "config.json"
    if not config_path.is_file():
        raise ValueError(f"bundle = {str(path)!r}: no config.json there; a bundle is a folder written by export")
    text = config_path.read_text()
    try:
        content = json.loads(text)
        files, found = content["files"], content["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise ValueError(f"bundle file {str(config_path)!r}: not a bundle's config ({e})") from e
    if found != FORMAT:
        raise ValueError(f"bundle file {str(config_path)!r}: format {found}, this version reads {FORMAT}")
    for name, digest in files.items():
        if not (path / name).is_file():
            raise ValueError(f"bundle file {str(path / name)!r}: missing")
        if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"bundle file {str(path / name)!r}: broken, its SHA-256 is not the one in config.json")
    config = config_lib.default()
    try:
        with config.unlocked():
            for section, fields in content["config"].items():
                for field, value in fields.items():
                    config[section][field] = tuple(value) if isinstance(value, list) else value
        validate(config)
        mean, std = np.float32(content["latent_mean"]), np.float32(content["latent_std"])
        labels, steps = tuple(content["labels"]), dict(content.get("steps", {}))
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"bundle file {str(config_path)!r}: not a bundle's config ({e})") from e
    parts = [*PARTS, *(part for part in MORE_PARTS if f"{part}.safetensors" in files)]
    params = {part: load_params_file(path / f"{part}.safetensors") for part in parts}
    tokenizer = load_tokenizer(path / "tokenizer.json")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Bundle(path, config, params, tokenizer, mean, std, labels, steps, digest)
