"""Go on from a bundle: `python -m dualspec_jax.import_bundle --config C --workdir W [--bundle B]`.

Writes each part of a bundle as the checkpoint at step 0 of its task, so that `encode`, `train` and `export` take it for
their own: fine-tune the embedded model on other sounds, or train one part further without training the others again.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dualspec_jax import compile_cache, networks
from dualspec_jax.bundle import Bundle, flatten, load_bundle
from dualspec_jax.checkpoint import Checkpoints, latest_step
from dualspec_jax.command_line import run
from dualspec_jax.config import validate
from dualspec_jax.loop import train_keys
from dualspec_jax.metrics_log import Window
from dualspec_jax.models.text_encoder import CaptionHeads
from dualspec_jax.optimizer import make_optimizer
from dualspec_jax.spatial.sounds import labels
from dualspec_jax.train_step import init_state

TASKS = {"mel_vae": "mel_vae", "stft_vae": "stft_vae", "text_encoder": "text_encoder", "diffusion": "unet"}  # -> part


def _abstract(config: ConfigDict, task: str) -> Any:
    """Return the shapes of a part's parameters by the config."""
    key, text = jax.random.key(0), config.text
    if task == "diffusion":
        x, one = jnp.zeros((1, *networks.latent_shape(config))), jnp.zeros(1)
        features, mask = jnp.zeros((1, text.max_length, text.d_model)), jnp.ones((1, text.max_length), bool)
        inputs = (key, x, one, features, mask, one, one > 0)
        return jax.eval_shape(networks.make_unet(config.unet).init, *inputs)["params"]
    if task == "text_encoder":
        ids = jnp.zeros((1, text.max_length), jnp.int32)
        return jax.eval_shape(networks.make_text_encoder(text).init, key, ids, ids > 0)["params"]
    bands = config.audio.n_mels if task == "mel_vae" else config.audio.n_bins
    model = networks.make_vae(config[task])
    x = jnp.zeros((1, config.data.crop_frames, bands, model.in_channels))
    return jax.eval_shape(model.init, key, x, key)["params"]


def _check_shapes(config: ConfigDict, bundle: Bundle, task: str) -> None:
    wanted = {
        "/".join(k.key for k in path): x.shape
        for path, x in jax.tree_util.tree_flatten_with_path(_abstract(config, task))[0]
    }
    found = {name: x.shape for name, x in flatten(bundle.params[TASKS[task]]).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"bundle = {str(bundle.path)!r}: {task} parameter {name} has shape {found.get(name, 'none')}, "
                f"the config makes {wanted.get(name, 'none')}; both must be of one size"
            )


def import_bundle(config: ConfigDict, workdir: Path, bundle: Bundle) -> None:
    """Write the parts of a bundle as checkpoints at step 0 of the tasks in a workdir, and its tokenizer.

    The optimizer starts afresh. The heads of the text encoder are not in a bundle; they start from random weights.

    Raises:
      ValueError: a task of the workdir has a checkpoint or the workdir a tokenizer already, or the bundle's
        parameters are not those of the config. Nothing is written then.
    """
    tokenizer_path = workdir / "tokenizer.json"
    if tokenizer_path.exists():
        raise ValueError(f"workdir = {str(workdir)!r}: has a tokenizer.json already; choose a new folder")
    for task in TASKS:
        if latest_step(workdir / task) is not None:
            raise ValueError(f"workdir = {str(workdir)!r}: {task} has a checkpoint already; choose a new folder")
        _check_shapes(config, bundle, task)
    workdir.mkdir(parents=True, exist_ok=True)
    for task, part in TASKS.items():
        params = jax.tree.map(jnp.asarray, bundle.params[part])
        init_key, base_key, _ = train_keys(config.seed)
        if task == "text_encoder":
            features = jnp.zeros((1, config.text.max_length, config.text.d_model))
            heads = CaptionHeads(len(labels())).init(init_key, features, jnp.ones(features.shape[:2], bool))
            params = {"encoder": params, "heads": heads["params"]}
        c = config.train[task]
        tx, _ = make_optimizer(c)
        state = init_state(lambda key, params=params: params, tx, init_key)
        checkpoints = Checkpoints(workdir / task, config, task, c.keep)
        checkpoints.save(0, state, {"iterator": None, "window": Window().sums}, base_key)
        checkpoints.close()
    partial = tokenizer_path.with_suffix(".partial")
    partial.write_bytes((bundle.path / "tokenizer.json").read_bytes())
    partial.replace(tokenizer_path)


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
    import_bundle(given.config, Path(given.workdir).absolute(), bundle)
    size = sum(np.size(x) for x in jax.tree.leaves(bundle.params))
    print(f"{given.workdir}: {size / 1e6:.1f} M parameters of {bundle.path}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "New folder of the experiment.")
    flags.DEFINE_string("bundle", None, "Bundle folder; the one in the package when not given.")
    run(main)
