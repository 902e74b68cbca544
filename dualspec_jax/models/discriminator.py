"""A patch discriminator: is each patch of a spectrogram recorded or decoded?"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float


class PatchDiscriminator(nn.Module):
    """Spectrogram -> what every layer sees, the score of each patch last.

    Attributes:
      channels: width of each layer; every layer halves time and frequency.
      input_mean, input_std: of the spectrogram, subtracted and divided out.

    Source: Isola et al. 2017 (arXiv:1611.07004); layers for feature matching as in Kong et al. 2020 (arXiv:2010.05646).
    """

    channels: Sequence[int]
    input_mean: float
    input_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T F C"]) -> list[Float[Array, "B t f c"]]:
        x = (x - self.input_mean) / self.input_std
        layers = []
        for i, width in enumerate(self.channels):
            x = nn.leaky_relu(nn.Conv(width, (4, 4), (2, 2), padding=1, name=f"conv_{i}")(x), 0.2)
            layers.append(x)
        layers.append(nn.Conv(1, (3, 3), padding=1, name="score")(x))
        return layers
