"""A neural vocoder: the complex spectrogram of a waveform from its log-mel, in one pass."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution along time, then two dense layers, with a scaled residual.

    Source: Liu et al. 2022 (arXiv:2201.03545), as in Vocos.
    """

    hidden: int
    scale: float
    kernel: int = 7

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        width = x.shape[-1]
        h = nn.Conv(width, (self.kernel,), feature_group_count=width, name="depthwise")(x)
        h = nn.LayerNorm(epsilon=1e-6, name="norm")(h)
        h = nn.Dense(width, name="dense_2")(nn.gelu(nn.Dense(self.hidden, name="dense_1")(h)))
        return x + h * self.param("scale", nn.initializers.constant(self.scale), (width,))


class Vocoder(nn.Module):
    """Log-mel of one channel -> complex spectrogram, for the inverse STFT.

    The log magnitude is what the network adds to the one spread from the Mel bands, so that an untrained network has
    about the right levels.

    Attributes:
      channels, layers, hidden: width of the trunk, its blocks, width inside a block.
      input_mean, input_std: of the log-mel, nepers.

    Source: Siuzdak 2024, Vocos (arXiv:2306.00814).
    """

    channels: int
    layers: int
    hidden: int
    input_mean: float
    input_std: float

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"], spread: Float[Array, "B T F"]) -> Complex[Array, "B T F"]:
        """Map a log-mel (nepers) and the magnitudes that `ops.mel.spread_mel` makes of it."""
        n_bins = spread.shape[-1]
        h = nn.Conv(self.channels, (7,), name="conv_in")((mel - self.input_mean) / self.input_std)
        h = nn.LayerNorm(epsilon=1e-6, name="norm_in")(h)
        for i in range(self.layers):
            h = ConvNeXtBlock(self.hidden, 1.0 / self.layers, name=f"block_{i}")(h)
        h = nn.Dense(2 * n_bins, name="head")(nn.LayerNorm(epsilon=1e-6, name="norm_out")(h))
        gain, phase = jnp.split(h, 2, axis=-1)
        magnitude = spread * jnp.exp(jnp.clip(gain, -8.0, 4.0))
        return magnitude * (jnp.cos(phase) + 1j * jnp.sin(phase))
