"""A small network that tells which event a Mel latent holds: it guides the sampler and chooses among its clips."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Reranker(nn.Module):
    """Mel latent, normalised -> logits of the events that the text encoder's codes stand for, "none" left out.

    Strided convolutions over time and frequency, then mean and deviation over time of each frequency row. It sees
    latents, not sound, and is no part of the evaluation: `models.classifier` is another network on other features.

    Attributes:
      events: outputs, `text.event_codes` - 1.
      channels: of each convolution; the first halves time, the others time and frequency.
      hidden: width of the layer behind them.

    The idea, many candidates of which a network that knows sound and text keeps the best: Liu et al. 2023
    (AudioLDM, arXiv:2301.12503), section 5.
    """

    events: int
    channels: Sequence[int] = (64, 96, 128)
    hidden: int = 128
    norm_groups: int = 8
    dropout: float = 0.3

    @nn.compact
    def __call__(self, latent: Float[Array, "B t f C"], train: bool = False) -> Float[Array, "B K"]:
        x = latent
        for i, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), (2, 2 if i else 1), name=f"conv_{i}")(x)
            x = nn.silu(nn.GroupNorm(self.norm_groups, name=f"norm_{i}")(x))
        x = jnp.concatenate([jnp.mean(x, axis=1), jnp.std(x, axis=1)], axis=-1).reshape(len(x), -1)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        return nn.Dense(self.events, name="out")(drop(nn.silu(nn.Dense(self.hidden, name="hidden")(drop(x)))))


def log_agreement(logits: Float[Array, "B K"], events: Float[Array, "B L"]) -> Float[Array, "B"]:
    """Return the log of how probable it is that a clip holds the event that its words name; 0 where they name none.

    Args:
      logits: of a Reranker.
      events: logits of the text encoder, those K events and, last, "none" (`T5Encoder.event_codes`).
    """
    named, heard = jax.nn.log_softmax(events), jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(named + jnp.pad(heard, ((0, 0), (0, 1))), axis=-1)
