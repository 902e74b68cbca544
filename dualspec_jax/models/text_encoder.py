"""The T5 encoder: version 1.1 / FLAN, with gated GELU."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def relative_position_bucket(relative: Int[Array, "L L"], num_buckets: int, max_distance: int) -> Int[Array, "L L"]:
    """Map key position minus query position to a bucket, both directions, logarithmic from num_buckets / 4 on.

    Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1.
    """
    half = num_buckets // 2
    bucket = jnp.where(relative > 0, half, 0)
    distance = jnp.abs(relative)
    exact = half // 2
    log_ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (log_ratio * (half - exact)).astype(jnp.int32), half - 1)
    return bucket + jnp.where(distance < exact, distance, far)


class RMSNorm(nn.Module):
    """Scale to unit root mean square, in float32, without bias or mean."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        return (scale * x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


class T5Encoder(nn.Module):
    """Token ids -> features of each token.

    Attributes:
      d_kv: width of one head; the heads together may differ from d_model.
      relative_buckets, relative_max_distance: of the position bias, which all layers share.
      event_codes: 0, or the number of events that the encoder tells apart, counting "none", the last. It then adds to
        every feature the code of the event named: learned vectors, mixed by the probabilities that the mean feature
        gives the events ("none" has no vector). So all wordings of an event have one thing in common, also those that
        training never saw. Not part of T5; docs/training.md has what it is worth.

    Source: Raffel et al. 2020; Shazeer 2020 (arXiv:2002.05202) for the gated GELU of T5 1.1.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_buckets: int = 32
    relative_max_distance: int = 128
    event_codes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"],
        keep_words: Bool[Array, "B"] | None = None,
        with_events: bool = False,
    ) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], Float[Array, "B K"]]:
        """Return features, float32; those of masked positions are meaningless and must stay masked.

        Args:
          keep_words: where false, the features are the event's code alone; None keeps all words. With event_codes only.
          with_events: return the logits of the events too, before the softmax. With event_codes only.
        """
        length = token_ids.shape[1]
        x = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, name="shared")(token_ids)
        position = jnp.arange(length)
        buckets = relative_position_bucket(
            position[None, :] - position[:, None], self.relative_buckets, self.relative_max_distance
        )
        bias = nn.Embed(self.relative_buckets, self.num_heads, name="relative_attention_bias")(buckets)
        bias = bias.transpose(2, 0, 1)[None] + jnp.where(text_mask, 0.0, -1e9)[:, None, None, :]
        inner = self.num_heads * self.d_kv
        # T5 has no 1 / sqrt(d) in the attention: it is in the scale of the initial weights of q.
        dense = lambda n, name, std: nn.Dense(
            n, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(std), name=name
        )
        for i in range(self.num_layers):
            h = RMSNorm(name=f"layer_{i}_attention_norm")(x)
            heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, self.d_kv)
            q = heads(dense(inner, f"layer_{i}_q", (self.d_model * self.d_kv) ** -0.5)(h))
            k = heads(dense(inner, f"layer_{i}_k", self.d_model**-0.5)(h))
            v = heads(dense(inner, f"layer_{i}_v", self.d_model**-0.5)(h))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) + bias
            out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
            x = x + dense(self.d_model, f"layer_{i}_o", inner**-0.5)(out.reshape(*x.shape[:2], inner))
            h = RMSNorm(name=f"layer_{i}_ff_norm")(x)
            gate = nn.gelu(dense(self.d_ff, f"layer_{i}_wi_0", self.d_model**-0.5)(h), approximate=True)
            h = gate * dense(self.d_ff, f"layer_{i}_wi_1", self.d_model**-0.5)(h)
            x = x + dense(self.d_model, f"layer_{i}_wo", self.d_ff**-0.5)(h)
        features = RMSNorm(name="final_norm")(x).astype(jnp.float32)
        if not self.event_codes:
            return features
        logits = nn.Dense(self.event_codes, name="event")(masked_mean(features, text_mask))
        table = self.param("event_table", nn.initializers.normal(1.0), (self.event_codes - 1, self.d_model))
        if keep_words is not None:
            features = features * keep_words[:, None, None]
        features = features + (jax.nn.softmax(logits)[:, :-1] @ table)[:, None]
        return (features, logits) if with_events else features


def masked_mean(features: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Return the mean over unmasked tokens; zero where all are masked."""
    weight = mask[..., None].astype(features.dtype)
    return jnp.sum(features * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


class CaptionHeads(nn.Module):
    """What a caption says, read off the mean text feature: used to train our own small encoder.

    Returns logits over the labels [B, K] (None for num_labels 0: an encoder with event codes has its own), a logit for
    "names a direction" [B], and sin/cos of the azimuth [B, 2].
    """

    num_labels: int

    @nn.compact
    def __call__(self, features: Float[Array, "B L D"], mask: Bool[Array, "B L"]):
        pooled = masked_mean(features, mask)
        azimuth = nn.Dense(2, name="azimuth")(nn.silu(nn.Dense(128, name="azimuth_hidden")(pooled)))
        label = nn.Dense(self.num_labels, name="label")(pooled) if self.num_labels else None
        return label, nn.Dense(1, name="direction")(pooled)[:, 0], azimuth


class DirectionReader(nn.Module):
    """Text features -> where the words say that the sound comes from.

    Returns logits [B, azimuths + 1]: of directions all around from 0 degrees on, counter-clockwise, and, last, of "the
    words name none". Learned queries pick the tokens that matter.

    Attributes:
      azimuths: directions told apart.
      queries: of the attention; each gives one mean of the features.
      hidden: width of the layer behind it.
      width: tokens, an odd number, that a convolution first joins to one feature: "right in front" is not "front
        right". 0 leaves it out.
    """

    azimuths: int
    queries: int
    hidden: int
    width: int = 0

    @nn.compact
    def __call__(self, features: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B K"]:
        if self.width:
            joined = nn.Conv(features.shape[-1], (self.width,), name="join")(features * mask[..., None])
            features = jnp.concatenate([features, nn.silu(joined)], axis=-1)
        scores = nn.Dense(self.queries, name="queries")(features) + jnp.where(mask, 0.0, -1e9)[..., None]
        picked = jnp.einsum("blq,bld->bqd", jax.nn.softmax(scores, axis=1), features)
        hidden = nn.silu(nn.Dense(self.hidden, name="hidden")(picked.reshape(len(picked), -1)))
        return nn.Dense(self.azimuths + 1, name="out")(hidden)


def read_direction(logits: Float[Array, "B K"]) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Return the azimuth in [0, 360), degrees, and whether one is named, of a DirectionReader's logits.

    The azimuth is the mean direction of what lies within 15 degrees of the most probable one.
    """
    count = logits.shape[-1] - 1
    circle = jnp.arange(count) * 360.0 / count
    best = circle[jnp.argmax(logits[:, :-1], axis=-1)]
    apart = jnp.abs((circle - best[:, None] + 180.0) % 360.0 - 180.0)
    weight = jax.nn.softmax(logits[:, :-1], axis=-1) * (apart <= 15.0)
    angle = jnp.deg2rad(circle)
    mean = jnp.arctan2(weight @ jnp.sin(angle), weight @ jnp.cos(angle))
    return jnp.rad2deg(mean) % 360.0, jax.nn.softmax(logits, axis=-1)[:, -1] < 0.5
