"""The denoiser: a 2-D U-Net with cross-attention to text tokens."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dualspec_jax.models import cpu
from dualspec_jax.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ResBlock,
    TransformerBlock,
    Upsample,
    depth_to_space,
    space_to_depth,
    timestep_embedding,
)
from dualspec_jax.models.text_encoder import masked_mean


class AzimuthEmbedding(nn.Module):
    """Embed a numeric azimuth through sines and cosines of its multiples, so that 359.9 and 0 are neighbours."""

    width: int
    harmonics: int = 4

    @nn.compact
    def __call__(self, azimuth_deg: Float[Array, "B"]) -> Float[Array, "B D"]:
        angle = jnp.deg2rad(azimuth_deg)[:, None] * jnp.arange(1, self.harmonics + 1)
        x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return nn.Dense(self.width, name="linear_2")(nn.silu(nn.Dense(self.width, name="linear_1")(x)))


class UNet(nn.Module):
    """Predict noise or velocity of a noisy latent.

    Attributes:
      patch: space-to-depth factors (time, frequency) of the latent grid; (1, 1) gives Tango's shape.
      channels: width of each level; the grid halves on both axes from one level to the next.
      attention: for each level, whether it has self- and cross-attention. The middle always has.
      freq_embedding: add a learned vector per frequency row after the first convolution.
      pooled_text: add the mean text feature to the time embedding, beside cross-attention.
      condition_rows: add to each frequency row of the first features what time, text and azimuth together say, zero at
        first. Interaural cues are patterns over frequency, which a condition that is the same for all rows leaves to
        the layers behind.
      azimuth_token: join a token made of a numeric azimuth to the text tokens, where has_azimuth is true.
      dtype: of the computation; parameters, norms' statistics, softmax and the output stay float32.
      remat: in the backward pass, compute what is inside a block again instead of keeping it.

    Source: Rombach et al. 2022; Ghosal et al. 2023 (Tango, arXiv:2304.13731) for text-to-audio. The azimuth token,
    the pooled
    text, the frequency embedding and the condition rows are ours.
    """

    patch: Sequence[int]
    channels: Sequence[int]
    layers_per_block: int
    attention: Sequence[bool]
    head_dim: int
    norm_groups: int
    freq_embedding: bool = True
    pooled_text: bool = True
    azimuth_token: bool = True
    azimuth_harmonics: int = 4
    condition_rows: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B t f C"],
        t: Int[Array, "B"] | Float[Array, "B"],
        text_emb: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
        azimuth_deg: Float[Array, "B"],
        has_azimuth: Bool[Array, "B"],
    ) -> Float[Array, "B t f C"]:
        out_channels, dtype = x.shape[-1], cpu.carried(self.dtype)
        width = 4 * self.channels[0]
        dense = lambda n, name: nn.Dense(n, dtype=dtype, name=name)
        emb = dense(width, "time_linear_1")(timestep_embedding(t, self.channels[0]).astype(dtype))
        emb = dense(width, "time_linear_2")(nn.silu(emb))
        if self.pooled_text:
            emb = emb + dense(width, "text_proj")(masked_mean(text_emb, text_mask))
        context, mask = text_emb, text_mask
        if self.azimuth_token:
            token = AzimuthEmbedding(text_emb.shape[-1], self.azimuth_harmonics, name="azimuth_embedding")(azimuth_deg)
            token = token * has_azimuth[:, None]
            context = jnp.concatenate([context, token[:, None]], axis=1)
            mask = jnp.concatenate([mask, has_azimuth[:, None]], axis=1)
            if self.pooled_text:
                emb = emb + dense(width, "azimuth_proj")(token)

        res_block, transformer_block = (nn.remat(m) if self.remat else m for m in (ResBlock, TransformerBlock))
        block = lambda i, name: res_block(self.channels[i], self.norm_groups, 1e-5, self.dtype, name=name)
        attend = lambda name: transformer_block(self.head_dim, self.norm_groups, self.dtype, name=name)
        last = len(self.channels) - 1

        h = space_to_depth(x, self.patch)
        h = Conv(self.channels[0], dtype=self.dtype, name="conv_in")(h)
        if self.freq_embedding:
            row = self.param("freq_embedding", nn.initializers.normal(0.02), (h.shape[2], h.shape[3]))
            h = h + row.astype(dtype)
        if self.condition_rows:
            zero = nn.initializers.zeros
            rows = nn.Dense(h.shape[2] * h.shape[3], dtype=dtype, kernel_init=zero, name="condition_rows")
            h = h + rows(nn.silu(emb)).reshape(-1, 1, *h.shape[2:])
        skips = [h]
        for i in range(len(self.channels)):
            for j in range(self.layers_per_block):
                h = block(i, f"down_{i}_resnets_{j}")(h, emb)
                if self.attention[i]:
                    h = attend(f"down_{i}_attentions_{j}")(h, context, mask)
                skips.append(h)
            if i < last:
                h = Downsample(self.channels[i], dtype=self.dtype, name=f"down_{i}_downsample")(h)
                skips.append(h)
        h = block(last, "mid_resnets_0")(h, emb)
        h = attend("mid_attentions_0")(h, context, mask)
        h = block(last, "mid_resnets_1")(h, emb)
        for i in range(last, -1, -1):
            for j in range(self.layers_per_block + 1):
                h = block(i, f"up_{i}_resnets_{j}")(jnp.concatenate([h, skips.pop()], axis=-1), emb)
                if self.attention[i]:
                    h = attend(f"up_{i}_attentions_{j}")(h, context, mask)
            if i > 0:
                h = Upsample(self.channels[i], dtype=self.dtype, name=f"up_{i}_upsample")(h)
        h = nn.silu(GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name="conv_norm_out")(h))
        folded = out_channels * self.patch[0] * self.patch[1]
        h = Conv(folded, dtype=self.dtype, name="conv_out")(h)
        return depth_to_space(h, self.patch).astype(jnp.float32)
