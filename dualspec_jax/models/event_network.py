"""The small network that names an event: it leads the sampler and, hearing sound, chooses among its clips."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RANGE_NEPERS = 9.0  # cells of a log-mel further below the loudest one count as that far below it: 78 dB


class EventNetwork(nn.Module):
    """Picture of a sound over time and frequency -> logits of the events that the text encoder's codes stand for.

    Strided convolutions, then statistics over time of each frequency row. The text encoder's last event, "none", is
    left out. Two of them are trained, on the same recordings: the event guide on normalised Mel latents, where it has a
    gradient for the sampler, and the listener on log-mels of finished sound (`level_free`). Neither is part of the
    evaluation: `models.classifier` is another network on other features.

    Attributes:
      events: outputs, `text.event_codes` - 1.
      channels: of each convolution; all halve time, and all but perhaps the first halve frequency.
      hidden: width of the layer behind them.
      halve_first: whether the first convolution halves frequency too.
      peaks: whether the largest value over time joins mean and deviation, for sounds that are short.

    The idea, many candidates of which a network that knows sound and text keeps the best: Liu et al. 2023
    (AudioLDM, arXiv:2301.12503), section 5.
    """

    events: int
    channels: Sequence[int] = (64, 96, 128)
    hidden: int = 128
    norm_groups: int = 8
    dropout: float = 0.3
    halve_first: bool = False
    peaks: bool = False

    @nn.compact
    def __call__(self, picture: Float[Array, "B t f C"], train: bool = False) -> Float[Array, "B K"]:
        x = picture
        for i, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), (2, 2 if i or self.halve_first else 1), name=f"conv_{i}")(x)
            x = nn.silu(nn.GroupNorm(self.norm_groups, name=f"norm_{i}")(x))
        statistics = [jnp.mean, jnp.std] + [jnp.max] * self.peaks
        x = jnp.concatenate([f(x, axis=1) for f in statistics], axis=-1).reshape(len(x), -1)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        return nn.Dense(self.events, name="out")(drop(nn.silu(nn.Dense(self.hidden, name="hidden")(drop(x)))))


def level_free(mel: Float[Array, "B T M"]) -> Float[Array, "B T M 1"]:
    """Return the picture of a log-mel (nepers) that a listener sees: about -1.5 to 1.5, whatever the clip's level."""
    loudest = jnp.max(mel, axis=(1, 2), keepdims=True)
    return (jnp.maximum(mel - loudest, -RANGE_NEPERS) * (3.0 / RANGE_NEPERS) + 1.5)[..., None]


def log_agreement(logits: Float[Array, "B K"], events: Float[Array, "B L"]) -> Float[Array, "B"]:
    """Return the log of how probable it is that a clip holds the event that its words name; 0 where they name none.

    Args:
      logits: of an EventNetwork.
      events: logits of the text encoder, those K events and, last, "none" (`T5Encoder.event_codes`).
    """
    named, heard = jax.nn.log_softmax(events), jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(named + jnp.pad(heard, ((0, 0), (0, 1))), axis=-1)
