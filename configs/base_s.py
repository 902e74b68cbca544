"""Small: base with another width of the U-Net, and FLAN-T5-small.

U-Net: 140.0 M parameters, 5.01e13 FLOPs in a step of 256 (`python -m dualspec_jax.sizes`).
Command: python -m dualspec_jax.train --config configs/base_s.py --task diffusion --workdir runs/base_s
Hardware: as configs/base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.unet.channels = (128, 256, 512, 512)
    c.text.update(d_model=512, d_ff=1024, num_layers=8, num_heads=6)
    return c
