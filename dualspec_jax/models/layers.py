"""Layers shared by the VAE and the denoiser, in the structure of the reference implementations (diffusers)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dualspec_jax.models import cpu, cpu_convolution, cpu_layers


def space_to_depth(x: Float[Array, "B T F C"], patch: Sequence[int]) -> Float[Array, "B t f c"]:
    """Fold patches of (time, frequency) into channels."""
    (p, q), (b, t, f, c) = patch, x.shape
    x = x.reshape(b, t // p, p, f // q, q, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, t // p, f // q, p * q * c)


def depth_to_space(x: Float[Array, "B t f c"], patch: Sequence[int]) -> Float[Array, "B T F C"]:
    """Invert `space_to_depth`."""
    (p, q), (b, t, f, c) = patch, x.shape
    x = x.reshape(b, t, f, p, q, c // (p * q)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, t * p, f * q, c // (p * q))


def timestep_embedding(t: Float[Array, "B"], dim: int) -> Float[Array, "B {dim}"]:
    """Return cos and sin of t at dim / 2 geometric frequencies, 1 down to 1e-4.

    Source: Vaswani et al. 2017; the order cos, sin is that of DDPM's U-Net.
    """
    half = dim // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t.astype(jnp.float32)[:, None] * freqs
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Dense(nn.Module):
    """A product with a kernel, and a bias; parameters as `nn.Dense` names them.

    Attributes:
      features: of the output.
      dtype: of the computation; parameters stay float32.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        dtype = cpu.carried(self.dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
        x = cpu_layers.product(x, kernel, rounded=dtype != self.dtype)
        return x if bias is None else cpu_layers.add_bias(x, bias)


class Conv(nn.Module):
    """A convolution of stride 1 with zeros around, parameters as `nn.Conv` names them.

    Attributes:
      channels: of the output.
      width: of the kernel along both axes, 3 or 1.
      dtype: of the computation; parameters stay float32.
    """

    channels: int
    width: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B t f c"]) -> Float[Array, "B t f d"]:
        shape = (self.width, self.width, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        dtype = cpu.carried(self.dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
        if self.width == 3:
            x = cpu_convolution.convolve(x, kernel, rounded=dtype != self.dtype)
        else:
            x = cpu_layers.product(x, kernel[0, 0], rounded=dtype != self.dtype)
        return cpu_layers.add_bias(x, bias)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` over the last axis, with scale and bias, on a CPU by `cpu_layers.group_norm`."""

    @nn.compact
    def __call__(self, x: Float[Array, "B ... c"]) -> Float[Array, "B ... c"]:
        if cpu.carried(self.dtype) != jnp.float32 or not cpu.on_cpu(x.dtype):
            return super().__call__(x)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return cpu_layers.group_norm(x, scale, bias, self.num_groups, self.epsilon)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with group norm, an optional embedding added between them, and a shortcut.

    Attributes:
      channels: output channels.
      groups: of the group norms; divides input and output channels.
      eps: of the group norms (1e-5 in the denoiser, 1e-6 in the VAE).
    """

    channels: int
    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B t f c"], emb: Float[Array, "B E"] | None = None) -> Float[Array, "B t f d"]:
        norm = lambda name: GroupNorm(self.groups, epsilon=self.eps, dtype=self.dtype, name=name)
        conv = lambda name: Conv(self.channels, dtype=self.dtype, name=name)
        h = conv("conv1")(nn.silu(norm("norm1")(x)))
        if emb is not None:
            h = h + Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))[:, None, None]
        h = conv("conv2")(nn.silu(norm("norm2")(h)))
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Multi-head attention from x to context (to x itself when context is None)."""

    num_heads: int
    head_dim: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B L E"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B N D"]:
        context = x if context is None else context
        width = self.num_heads * self.head_dim

        def heads(y, name):
            y = Dense(width, use_bias=self.use_bias, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)

        q, k, v = heads(x, "to_q"), heads(context, "to_k"), heads(context, "to_v")
        if mask is None and cpu.on_cpu(q.dtype):
            out = cpu_layers.self_attention(q, k, v, rounded=q.dtype != self.dtype)
        else:
            out = jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None, None, :])
        out = out.reshape(*x.shape[:2], width)
        return Dense(x.shape[-1], dtype=self.dtype, name="to_out")(out)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a grid, as in the middle of the VAE."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B t f c"]) -> Float[Array, "B t f c"]:
        h = GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="group_norm")(x)
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        h = Attention(1, x.shape[-1], use_bias=True, dtype=self.dtype, name="attention")(h)
        return x + h.reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text tokens and a gated feed-forward, on a grid of positions."""

    head_dim: int
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B t f c"], context: Float[Array, "B L D"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B t f c"]:
        channels = x.shape[-1]
        attention = lambda name: Attention(channels // self.head_dim, self.head_dim, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=cpu.carried(self.dtype), name=name)
        h = GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        h = Dense(channels, dtype=self.dtype, name="proj_in")(h.reshape(x.shape[0], -1, channels))
        h = h + attention("attn1")(norm("norm1")(h))
        h = h + attention("attn2")(norm("norm2")(h), context, mask)
        hidden = cpu_layers.gated_gelu(Dense(8 * channels, dtype=self.dtype, name="ff_in")(norm("norm3")(h)))
        h = h + Dense(channels, dtype=self.dtype, name="ff_out")(hidden)
        return x + Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)


class Downsample(nn.Module):
    """3x3 convolution with a stride per axis.

    Attributes:
      asymmetric: pad only at the end of a strided axis, as the VAE of latent diffusion does; otherwise both ends.
    """

    channels: int
    stride: Sequence[int] = (2, 2)
    asymmetric: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B t f c"]) -> Float[Array, "B u g c"]:
        padding = [(0, 1) if s == 2 and self.asymmetric else (1, 1) for s in self.stride]
        dtype = cpu.carried(self.dtype)
        return nn.Conv(self.channels, (3, 3), tuple(self.stride), padding=padding, dtype=dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by a factor per axis, then a 3x3 convolution."""

    channels: int
    stride: Sequence[int] = (2, 2)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B t f c"]) -> Float[Array, "B u g c"]:
        for axis, factor in zip((1, 2), self.stride, strict=True):
            x = jnp.repeat(x, factor, axis=axis) if factor > 1 else x
        return Conv(self.channels, dtype=self.dtype, name="conv")(x)
