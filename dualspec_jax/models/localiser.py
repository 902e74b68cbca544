"""A small network that tells the azimuth of a sound from interaural cues."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.ops.interaural import interaural_cues


class AzimuthNetwork(nn.Module):
    """Interaural statistics [B, F, 4] (see `ops.interaural`) -> logits of azimuths around the circle [B, A].

    Logit a stands for the azimuth 360 a / A degrees.
    """

    azimuths: int = 120
    hidden: Sequence[int] = (512, 256)
    dropout: float = 0.1
    sample_rate: int = 16000
    n_fft: int = 1024

    @nn.compact
    def __call__(self, statistics: Float[Array, "B F 4"], train: bool = False) -> Float[Array, "B A"]:
        cues = interaural_cues(statistics, self.sample_rate, self.n_fft)
        x = cues.reshape(cues.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.silu(nn.Dense(width, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return jnp.asarray(nn.Dense(self.azimuths, name="azimuth")(x), jnp.float32)
