"""Go on from a bundle: `python -m dualspec_jax.import_bundle --config C --workdir W [--bundle B]`.

Writes each part of a bundle as the checkpoint at step 0 of its task, so that `encode`, `train` and `export` take it for
their own: fine-tune the embedded model on other sounds, or train one part further without training the others again.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dualspec_jax import compile_cache
from dualspec_jax.bundle import Bundle, flatten, load_bundle, unflatten
from dualspec_jax.checkpoint import latest_step
from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.loop import make_keys, save_start
from dualspec_jax.tasks import make_model

TASKS = {  # -> part
    "mel_vae": "mel_vae",
    "stft_vae": "stft_vae",
    "vocoder": "vocoder",
    "text_encoder": "text_encoder",
    "reader": "reader",
    "event_guide": "event_guide",
    "listener": "listener",
    "diffusion": "unet",
}
INSIDE = {"text_encoder": "encoder", "vocoder": "generator"}  # where a task's parameters hold the part, among others


def _missing(config: ConfigDict, bundle: Bundle, task: str) -> list[str]:
    """Return the names of a task's parameters that the bundle does not have.

    Raises:
      ValueError: a parameter of the bundle is not in the config's network, or has another shape there.
    """
    abstract = jax.eval_shape(make_model(config, task).init, jax.random.key(0))
    wanted = _shapes(abstract[INSIDE[task]] if task in INSIDE else abstract)
    found = _shapes(bundle.params[TASKS[task]])
    for name in sorted(found):
        if wanted.get(name) != found[name]:
            raise ValueError(
                f"bundle = {str(bundle.path)!r}: {task} parameter {name} has shape {found[name]}, "
                f"the config makes {wanted.get(name, 'none')}; both must be of one size"
            )
    return sorted(wanted.keys() - found.keys())


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def import_bundle(config: ConfigDict, workdir: Path, bundle: Bundle) -> dict[str, list[str]]:
    """Write the parts of a bundle as checkpoints at step 0 of the tasks in a workdir, its tokenizer, and imported.json.

    Returns {task: parameters of its network that the bundle does not have}: those that belong to options which the
    bundle was trained without. They start as those of a new training.

    imported.json has the bundle's digest and `steps`, which `export` adds to those of the workdir.

    The optimizer starts afresh. The text encoder's heads and the vocoder's discriminators are not in a bundle; they
    start from random weights. A bundle without a vocoder gives none.

    Raises:
      ValueError: a task of the workdir has a checkpoint or the workdir a tokenizer already, or the bundle's
        parameters are not those of the config. Nothing is written then.
    """
    tokenizer_path = workdir / "tokenizer.json"
    if tokenizer_path.exists():
        raise ValueError(f"workdir = {str(workdir)!r}: has a tokenizer.json already; choose a new folder")
    tasks = {task: part for task, part in TASKS.items() if part in bundle.params}
    for task in tasks:
        if latest_step(workdir / task) is not None:
            raise ValueError(f"workdir = {str(workdir)!r}: {task} has a checkpoint already; choose a new folder")
    missing = {task: _missing(config, bundle, task) for task in tasks}
    workdir.mkdir(parents=True, exist_ok=True)
    for task, part in tasks.items():
        params = bundle.params[part]
        if task in INSIDE or missing[task]:
            initial = make_model(config, task).init(make_keys(config.seed)[0])
            inner = initial[INSIDE[task]] if task in INSIDE else initial
            params = unflatten(flatten(inner) | flatten(params))
            params = initial | {INSIDE[task]: params} if task in INSIDE else params
        save_start(config, task, workdir, jax.tree.map(jnp.asarray, params))
    origin = {"bundle_sha256": bundle.digest, "steps": bundle.steps}
    (workdir / "imported.json").write_text(json.dumps(origin, indent=1) + "\n")
    partial = tokenizer_path.with_suffix(".partial")
    partial.write_bytes((bundle.path / "tokenizer.json").read_bytes())
    partial.replace(tokenizer_path)
    return missing


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("config", "workdir"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    validate(given.config)
    logging.set_verbosity(logging.WARNING)
    compile_cache.enable()
    bundle = load_bundle(given.bundle)
    missing = import_bundle(given.config, Path(given.workdir).absolute(), bundle)
    for task, names in missing.items():
        if names:
            print(f"{task}: not in the bundle, so as in a new training: {', '.join(names)}")
    size = sum(np.size(x) for x in jax.tree.leaves(bundle.params))
    print(f"{given.workdir}: {size / 1e6:.1f} M parameters of {bundle.path}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "New folder of the experiment.")
    flags.DEFINE_string("bundle", None, "Bundle folder; the one in the package when not given.")
    run(main)
