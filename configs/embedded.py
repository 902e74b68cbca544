"""The embedded model: the size of config.default(), trained on 6 000 scenes of 127 sounds.

Command: launch/train_embedded.sh (the stages in order). Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from dualspec_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.dataset = "spatial_audio/spatial_audio_6k:1.0.0"
    c.data.label_balance = 0.0  # the scenes are planned by count ** 0.5 already
    c.text.max_length = 32
    c.train.text_encoder.batch_size = 64
    c.train.text_encoder.lr = 1.5e-3
    return c
