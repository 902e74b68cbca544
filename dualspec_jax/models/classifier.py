"""A small convolutional network that names the event in a log-mel spectrogram, for the metrics."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class EventClassifier(nn.Module):
    """Log-mel of the content [B, T, M] -> (logits [B, K], embedding [B, 2 * channels[-1]]).

    Each sample is first normalised by its own mean over the loudest half of its cells, so level does not matter:
    always look at the level beside the label, a near-silent clip gets a confident label too.
    """

    num_labels: int
    channels: Sequence[int] = (32, 64, 96, 128)
    dropout: float = 0.2

    @nn.compact
    def __call__(self, mel: Float[Array, "B T M"], train: bool = False):
        x = jnp.maximum(mel, jnp.max(mel, axis=(1, 2), keepdims=True) - 8.0)
        x = (x - jnp.mean(x, axis=(1, 2), keepdims=True)) / (jnp.std(x, axis=(1, 2), keepdims=True) + 0.1)
        x = x[..., None]
        band = jnp.linspace(-1.0, 1.0, x.shape[2])[None, None, :, None]
        x = jnp.concatenate([x, jnp.broadcast_to(band, x.shape)], axis=-1)
        for i, width in enumerate(self.channels):
            stride = (2, 2) if i == 0 else (1, 1)
            x = nn.Conv(width, (3, 3), stride, padding=1, name=f"conv_{i}_0")(x)
            x = nn.silu(nn.GroupNorm(8, name=f"norm_{i}_0")(x))
            if i > 0:
                y = nn.Conv(width, (3, 3), padding=1, name=f"conv_{i}_1")(x)
                x = x + nn.silu(nn.GroupNorm(8, name=f"norm_{i}_1")(y))
            x = nn.max_pool(x, (2, 2), (2, 2))
        embedding = jnp.concatenate([jnp.mean(x, axis=(1, 2)), jnp.max(x, axis=(1, 2))], axis=-1)
        h = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        return nn.Dense(self.num_labels, name="label")(h), embedding
