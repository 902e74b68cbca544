"""B: base with another width of the U-Net, and FLAN-T5-base.

U-Net: 314.8 M parameters, 1.06e14 FLOPs in a step of 256 (`python -m dualspec_jax.sizes`).
Command: python -m dualspec_jax.train --config configs/base_b.py --task diffusion --workdir runs/base_b
Hardware: as configs/base.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.unet.channels = (192, 384, 768, 768)
    c.text.update(d_model=768, d_ff=2048, num_layers=12, num_heads=12)
    return c
