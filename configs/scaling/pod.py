"""Model size x data x steps at the size of the field: the U-Nets of base_s, base_b, base_l and base.

Command: python -m dualspec_jax.scaling --grid configs/scaling/pod.py --workdir runs/base --out runs/scaling --dry-run
Hardware: as configs/base.py, for each run; print the commands and start them with launch/.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    widths = dict(s=(128, 256, 512, 512), b=(192, 384, 768, 768), l=(256, 512, 1024, 1024), base=(320, 640, 1280, 1280))
    return ConfigDict(
        dict(
            experiment="configs/base.py",
            task="diffusion",
            fixed=dict(eval_batches=16),
            sizes={name: dict(channels=channels) for name, channels in widths.items()},
            fractions=(0.04, 0.2, 1.0),
            steps=(10_000, 30_000, 90_000),
        )
    )
