"""Train one part: `python -m dualspec_jax.train --config configs/embedded.py --task mel_vae --workdir W`.

The same command again goes on where the last one stopped. Any field can be given on the command line, for example
`--config.train.diffusion.lr=2e-4`. On several hosts, the same command on each: see `distributed.py` and `launch/`.
"""

import os
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from dualspec_jax import compile_cache, distributed
from dualspec_jax.command_line import run
from dualspec_jax.config import TASKS
from dualspec_jax.config_rules import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
_TASK = flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the experiment; results go to <workdir>/<task>.")
_STOP_AFTER = flags.DEFINE_integer(
    "stop_after", None, "Save and stop after this many steps of this run.", lower_bound=1
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    if _CONFIG.value is None:
        raise ValueError("--config is required, for example --config configs/embedded.py")
    if _TASK.value not in TASKS:
        raise ValueError(f"--task={_TASK.value}: must be one of {', '.join(TASKS)}")
    if not _WORKDIR.value:
        raise ValueError("--workdir is required")
    workdir = Path(_WORKDIR.value).absolute()
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={_WORKDIR.value}: is not a folder")
    validate(_CONFIG.value)
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it touches
    compile_cache.enable()
    distributed.initialize(os.environ)

    from dualspec_jax.loop import train  # slow to import: mistakes above are told at once
    from dualspec_jax.tasks import make_task

    train(_CONFIG.value, make_task(_CONFIG.value, _TASK.value, workdir), workdir, _STOP_AFTER.value)


if __name__ == "__main__":
    run(main)
