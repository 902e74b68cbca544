"""The one autoencoder, used for Mel and for STFT spectrograms with two configurations."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dualspec_jax.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ResBlock,
    SpatialAttention,
    Upsample,
    depth_to_space,
    space_to_depth,
)


def _res_block(channels: int, parent: nn.Module, name: str) -> nn.Module:
    module = nn.remat(ResBlock) if parent.remat else ResBlock
    return module(channels, parent.groups, 1e-6, parent.dtype, name=name)


class _Middle(nn.Module):
    channels: int
    groups: int
    attention: bool
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, x):
        x = _res_block(self.channels, self, "resnets_0")(x)
        if self.attention:
            x = SpatialAttention(self.groups, self.dtype, name="attention")(x)
        return _res_block(self.channels, self, "resnets_1")(x)


class Encoder(nn.Module):
    """Grid of features -> grid of posterior means and log-variances; see AutoencoderKL for the fields."""

    patch: Sequence[int]
    channels: Sequence[int]
    strides: Sequence[Sequence[int]]
    layers_per_block: int
    latent_channels: int
    groups: int
    mid_attention: bool
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B t f c"]:
        x = space_to_depth(x, self.patch)
        x = Conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.channels):
            for j in range(self.layers_per_block):
                x = _res_block(width, self, f"down_{i}_resnets_{j}")(x)
            if i < len(self.strides):
                x = Downsample(width, self.strides[i], True, self.dtype, name=f"down_{i}_downsample")(x)
        x = _Middle(self.channels[-1], self.groups, self.mid_attention, self.dtype, self.remat, name="mid")(x)
        x = nn.silu(GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="conv_norm_out")(x))
        return Conv(2 * self.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Grid of latents -> grid of features; see AutoencoderKL for the fields."""

    out_channels: int
    patch: Sequence[int]
    channels: Sequence[int]
    strides: Sequence[Sequence[int]]
    layers_per_block: int
    groups: int
    mid_attention: bool
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, z: Float[Array, "B t f c"]) -> Float[Array, "B T F C"]:
        x = Conv(self.channels[-1], dtype=self.dtype, name="conv_in")(z)
        x = _Middle(self.channels[-1], self.groups, self.mid_attention, self.dtype, self.remat, name="mid")(x)
        for i, width in reversed(list(enumerate(self.channels))):
            for j in range(self.layers_per_block + 1):
                x = _res_block(width, self, f"up_{i}_resnets_{j}")(x)
            if i > 0:
                x = Upsample(width, self.strides[i - 1], self.dtype, name=f"up_{i}_upsample")(x)
        x = nn.silu(GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="conv_norm_out")(x))
        folded = self.out_channels * self.patch[0] * self.patch[1]
        x = Conv(folded, dtype=self.dtype, name="conv_out")(x)
        return depth_to_space(x, self.patch).astype(jnp.float32)


class AutoencoderKL(nn.Module):
    """Convolutional autoencoder with a diagonal Gaussian latent.

    Attributes:
      in_channels: C of the spectrogram.
      patch: space-to-depth factors (time, frequency) before the first convolution; (1, 1) gives the plain model.
      channels: width of each level.
      strides: (time, frequency) factor between one level and the next.
      layers_per_block: residual blocks of a level in the encoder; the decoder has one more.
      input_mean, input_std: per channel, subtracted from and divided out of the input; the decoder undoes them.
      dtype: of the computation; parameters, latents and the output stay float32.
      remat: in the backward pass, compute what is inside a residual block again instead of keeping it.

    Source: Rombach et al. 2022 (arXiv:2112.10752), the structure of diffusers' AutoencoderKL.
    """

    in_channels: int
    patch: Sequence[int]
    channels: Sequence[int]
    strides: Sequence[Sequence[int]]
    layers_per_block: int
    latent_channels: int
    norm_groups: int
    mid_attention: bool
    input_mean: Sequence[float]
    input_std: Sequence[float]
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        shared = (self.patch, self.channels, self.strides, self.layers_per_block)
        ends = (self.norm_groups, self.mid_attention, self.dtype, self.remat)
        self.encoder = Encoder(*shared, self.latent_channels, *ends)
        self.decoder = Decoder(self.in_channels, *shared, *ends)
        self.quant_conv = Conv(2 * self.latent_channels, 1)
        self.post_quant_conv = Conv(self.latent_channels, 1, self.dtype)

    def encode(self, x: Float[Array, "B T F C"]) -> tuple[Float[Array, "B t f c"], Float[Array, "B t f c"]]:
        """Return mean and log-variance of the posterior, log-variance clipped to [-30, 20]."""
        x = (x - jnp.asarray(self.input_mean)) / jnp.asarray(self.input_std)
        mu, logvar = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return mu, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[Array, "B t f c"]) -> Float[Array, "B T F C"]:
        """Return the spectrogram of a latent, in the units of the input."""
        return self.decoder(self.post_quant_conv(z)) * jnp.asarray(self.input_std) + jnp.asarray(self.input_mean)

    def __call__(self, x: Float[Array, "B T F C"], key: Array):
        """Return (reconstruction of a posterior sample, mu, logvar)."""
        mu, logvar = self.encode(x)
        z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        return self.decode(z), mu, logvar
