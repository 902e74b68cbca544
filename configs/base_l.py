"""Large: base with another width of the U-Net, and FLAN-T5-large.

U-Net: 559.5 M parameters, 1.87e14 FLOPs in a step of 256 (`python -m dualspec_jax.sizes`).
Command: python -m dualspec_jax.train --config configs/base_l.py --task diffusion --workdir runs/base_l
Hardware: as configs/base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.unet.channels = (256, 512, 1024, 1024)
    return c
