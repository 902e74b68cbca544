"""The embedded model: the size of config.default(), trained on 6 000 scenes of 127 sounds.

Command: launch/train_embedded.sh (the stages in order). Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from dualspec_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.dataset = "spatial_audio/spatial_audio_6k:1.0.0"
    # The scenes are planned by recordings ** 0.5; this makes it recordings ** 0.875, so that the many labels with one
    # or two recordings, which are soon known by heart, do not take half of the steps.
    c.data.label_balance = -0.75
    c.text.max_length = 32
    c.train.diffusion.ema_decay = 0.998
    c.train.text_encoder.batch_size = 64
    c.train.text_encoder.lr = 1.5e-3
    return c
