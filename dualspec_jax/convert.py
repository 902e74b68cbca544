"""Start a part from public weights: `python -m dualspec_jax.convert --config C --task T --source DIR --workdir W`.

The source is a local folder of diffusers (VAE, U-Net) or transformers (T5). The result is a checkpoint of step 0 in
<workdir>/<task>: training goes on from it, and a part that is not trained is used as it is. With a T5, its
`tokenizer.json` becomes <workdir>/tokenizer.json; the data set is built before, for its labels size the caption heads.
"""

import shutil
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate


def convert_to_checkpoint(config: ConfigDict, task: str, source: Path, workdir: Path) -> tuple[int, int]:
    """Write <workdir>/<task>/checkpoints/0; return the numbers of converted and of fresh parameters.

    Raises:
      ValueError: a task that no public model has, a source that does not fit the config, or a checkpoint or tokenizer
        that is there.
    """
    import jax
    import jax.numpy as jnp

    from dualspec_jax import pretrained, pretrained_source
    from dualspec_jax.checkpoint import latest_step
    from dualspec_jax.loop import make_keys, save_start
    from dualspec_jax.scene_source import known_labels
    from dualspec_jax.tasks import make_model
    from dualspec_jax.text_task import text_encoder_model
    from dualspec_jax.tokenizer import load_tokenizer

    if task not in pretrained.TASKS:
        raise ValueError(f"task = {task!r}: must be one of {', '.join(pretrained.TASKS)}")
    if latest_step(workdir / task) is not None:
        raise ValueError(f"workdir = {str(workdir)!r}: has a checkpoint of {task} already; choose another")
    tokenizer = workdir / "tokenizer.json"
    if task == "text_encoder":
        if tokenizer.exists():
            raise ValueError(f"workdir = {str(workdir)!r}: has a tokenizer.json already; choose another")
        tokens, rows = load_tokenizer(source / "tokenizer.json").vocab_size, config.text.vocab_size
        if tokens > rows:
            raise ValueError(f"config.text.vocab_size = {rows}: the source's tokenizer.json has {tokens} tokens")
        model = text_encoder_model(config, len(known_labels(config, config.data.data_dir or workdir / "tfds")))
    else:
        model = make_model(config, task)
    if task == "diffusion":
        pretrained_source.check_scheduler(config, source)
    init_key = make_keys(config.seed)[0]
    abstract = jax.eval_shape(model.init, init_key)
    leaves, tree = jax.tree.flatten(abstract)
    found = pretrained.convert(config, task, abstract, *pretrained.read_folder(source))
    found = tree.flatten_up_to(found)
    # Only the fresh ones are made: the compiler drops what they do not need.
    pick = lambda key: [x for x, y in zip(jax.tree.leaves(model.init(key)), found, strict=True) if y is None]
    fresh = iter(jax.jit(pick)(init_key))
    params = tree.unflatten([next(fresh) if x is None else jnp.asarray(x) for x in found])
    save_start(config, task, workdir, params)
    if task == "text_encoder":
        shutil.copyfile(source / "tokenizer.json", tokenizer)
    new = sum(x.size for x, y in zip(leaves, found, strict=True) if y is None)
    return sum(x.size for x in leaves) - new, new


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("config", "task", "source", "workdir"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    validate(given.config)
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it touches
    workdir = Path(given.workdir).absolute()
    converted, fresh = convert_to_checkpoint(given.config, given.task, Path(given.source), workdir)
    print(f"{workdir / given.task}: {converted} parameters converted, {fresh} start fresh")
    if given.task in ("mel_vae", "stft_vae"):
        v = given.config[given.task]
        print(f"config.{given.task}: the source must know inputs less {v.input_mean}, divided by {v.input_std}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("task", None, "mel_vae, stft_vae, text_encoder or diffusion.")
    flags.DEFINE_string("source", None, "Folder with config.json and safetensors.")
    flags.DEFINE_string("workdir", None, "Folder of the experiment.")
    run(main)
