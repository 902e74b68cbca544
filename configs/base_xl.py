"""Extra large: base with another width of the U-Net, and FLAN-T5-xl.

U-Net: 1722.7 M parameters, 5.53e14 FLOPs in a step of 256 (`python -m dualspec_jax.sizes`).
Command: python -m dualspec_jax.train --config configs/base_xl.py --task diffusion --workdir runs/base_xl
Hardware: as configs/base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.unet.channels = (448, 896, 1792, 1792)
    c.text.update(d_model=2048, d_ff=5120, num_layers=24, num_heads=32)
    return c
