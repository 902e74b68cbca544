"""Large: base with another width of the U-Net, and FLAN-T5-large.

Command: python -m dualspec_jax.train --config configs/base_l.py --task diffusion --workdir runs/base_l
Hardware: as configs/base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.unet.channels = (256, 512, 1024, 1024)
    return c
