"""A small network that names the event in a log-mel spectrogram, for the metrics."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.ops.texture import texture_statistics


class EventClassifier(nn.Module):
    """Log-mel of the content [B, T, M] -> (logits [B, K], embedding [B, hidden[-1]]).

    The network sees texture statistics of the clip, which it first brings to mean 0 and spread 1 (`center` and
    `spread`, set from the training data by `tasks`). Level does not matter: always look at the level beside the label,
    a near-silent clip gets a confident label too.

    Attributes:
      hidden: widths of the layers.
      frame_rate: of the log-mel, frames per second.
    """

    num_labels: int
    hidden: Sequence[int] = (256, 128)
    dropout: float = 0.3
    frame_rate: float = 50.0

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"], train: bool = False):
        x = texture_statistics(mel, self.frame_rate)
        center = self.param("center", nn.initializers.zeros, x.shape[-1:])
        spread = self.param("spread", nn.initializers.ones, x.shape[-1:])
        x = jnp.clip((x - center) / spread, -4.0, 4.0)
        for i, width in enumerate(self.hidden):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.silu(nn.Dense(width, name=f"hidden_{i}")(x))
        h = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_labels, name="label")(h), x
