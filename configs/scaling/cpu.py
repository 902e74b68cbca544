"""A grid for two CPU cores: three widths of the embedded U-Net, all scenes, three lengths of training.

Command: python -m dualspec_jax.scaling --grid configs/scaling/cpu.py --workdir runs/embedded --out runs/scaling
Hardware: two CPU cores. Needs the latents and the text encoder of a workdir that launch/train_embedded.sh has made.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="configs/embedded.py",
            task="diffusion",
            # Of all runs: fields of train.diffusion.
            fixed=dict(batch_size=8, warmup_steps=20, eval_every=1000, eval_batches=8),
            # Name of a size -> fields of unet.
            sizes=dict(
                w16=dict(channels=(16, 32, 48), head_dim=16),
                w32=dict(channels=(32, 64, 96), head_dim=32),
                w64=dict(channels=(64, 128, 192), head_dim=32),
            ),
            fractions=(1.0,),  # of the training latents
            steps=(50, 150, 450),
        )
    )
