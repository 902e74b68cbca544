"""Losses of the networks that recognise events and directions, and what varies their inputs in training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dualspec_jax.models.text_encoder import read_direction


def around_circle(azimuth_deg: jax.Array, azimuths: int, std_deg: float) -> tuple[jax.Array, jax.Array]:
    """Return (distances in degrees, a normal curve of sum 1) of that many directions around azimuths [B]: [B, K]."""
    circle = np.arange(azimuths) * 360.0 / azimuths
    apart = jnp.abs((azimuth_deg[:, None] - circle + 180.0) % 360.0 - 180.0)
    return apart, jax.nn.softmax(-0.5 * (apart / std_deg) ** 2, axis=-1)


def reader_loss(apply: Callable, azimuths: int, label_std_deg: float):
    """Cross-entropy with a normal curve around the azimuth that a caption names, or with "none" where it names none.

    Args:
      apply: (params, token_ids, text_mask, frozen text encoder) -> logits of a `models.text_encoder.DirectionReader`.
    """

    def loss_fn(params, batch, key, encoder_params):
        del key
        logits = apply(params, batch["token_ids"], batch["text_mask"], encoder_params)
        has = batch["has_direction"]
        _, curve = around_circle(batch["azimuth_deg"], azimuths, label_std_deg)
        target = jnp.concatenate([curve * has[:, None], 1.0 - has[:, None]], axis=-1)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
        found, named = read_direction(logits)
        error = jnp.abs((found - batch["azimuth_deg"] + 180.0) % 360.0 - 180.0)
        return loss, {
            "azimuth_error_deg": jnp.sum(error * has) / jnp.maximum(jnp.sum(has), 1),
            "direction_accuracy": jnp.mean(named == has),
        }

    return loss_fn


def augment_content(mel: jax.Array, key: jax.Array, amount: float) -> jax.Array:
    """Vary log-mels [B, T, M] (nepers) as rooms, recorders and vocoders do; the event stays what it is.

    A colour (a smooth curve over the bands), up to 2 bands up or down, a faint other clip of the batch behind it, a
    steady noise floor, blur over time, blur over bands: each for a share `amount` of the clips.
    """
    n, _, bands = mel.shape
    k_use, k_color, k_shift, k_other, k_level, k_floor, k_tilt = jax.random.split(key, 7)
    use = jax.random.bernoulli(k_use, amount, (6, n, 1, 1))
    uniform = lambda k, low, high: jax.random.uniform(k, (n, 1, 1), minval=low, maxval=high)
    place = np.pi * (np.arange(bands) + 0.5) / bands
    order = np.arange(1, 6)
    curves = (np.cos(place * order[:, None]) / np.sqrt(order)[:, None]).astype(np.float32)
    color = lambda k: (jax.random.normal(k, (n, len(order))) @ curves)[:, None]
    mel = mel + 0.3 * use[0] * color(k_color)

    shift = use[1] * jax.random.randint(k_shift, (n, 1, 1), -2, 3)
    mel = jnp.take_along_axis(mel, jnp.clip(np.arange(bands) + shift, 0, bands - 1), axis=2)

    # What is added behind the clip; far below everything where it is not used.
    top = jnp.max(mel, axis=(1, 2), keepdims=True)
    partner = jax.random.permutation(k_other, n)
    other = mel[partner] + top - top[partner] - jnp.where(use[2], uniform(k_level, 2.0, 5.0), 30.0)
    floor = top - jnp.where(use[3], uniform(k_floor, 5.0, 10.0), 30.0) + 0.5 * color(k_tilt)
    power = jnp.exp(2.0 * mel) + jnp.exp(2.0 * other) + jnp.exp(2.0 * floor)
    for axis, used in ((1, use[4]), (2, use[5])):
        power = jnp.where(used, 0.25 * (jnp.roll(power, 1, axis) + jnp.roll(power, -1, axis)) + 0.5 * power, power)
    return 0.5 * jnp.log(power + 1e-12)


def classifier_loss(apply: Callable, num_labels: int, amount: float, smoothing: float = 0.05):
    """Cross-entropy of the label, with augmented clips.

    Args:
      amount: of augmentation, see `augment_content`.
      smoothing: share of the target that goes to all labels alike.
    """

    def loss_fn(params, batch, key):
        k_augment, k_drop = jax.random.split(key)
        mel = augment_content(batch["mel"], k_augment, amount)
        logits, _ = apply(params, mel, train=True, rngs={"dropout": k_drop})
        target = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_labels), smoothing)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
        return loss, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])}

    return loss_fn


def augment_latents(latent: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Vary normalised latents [B, t, f, C] as those of the sampler are off; the event stays what it is.

    Noise with a deviation of up to `noise`, a constant per channel (as another level or colour makes), up to three rows
    and up to a quarter of the frames left out.
    """
    n, frames, rows, channels = latent.shape
    k_amount, k_noise, k_offset, k_row, k_rows, k_frame, k_frames = jax.random.split(key, 7)
    amount = jax.random.uniform(k_amount, (n, 1, 1, 1), maxval=noise)
    latent = latent + amount * jax.random.normal(k_noise, latent.shape)
    latent = latent + 0.2 * jax.random.normal(k_offset, (n, 1, 1, channels))
    for axis, size, longest, k_start, k_length in (
        (2, rows, 3, k_row, k_rows),
        (1, frames, frames // 4, k_frame, k_frames),
    ):
        start = jax.random.randint(k_start, (n, 1, 1, 1), 0, size)
        end = start + jax.random.randint(k_length, (n, 1, 1, 1), 0, longest + 1)
        place = jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(4)])
        latent = jnp.where((place >= start) & (place < end), 0.0, latent)
    return latent


def event_guide_loss(
    apply: Callable, latent_mean, latent_std, noise: float, mixing: float, smoothing: float = 0.05, train: bool = True
):
    """Cross-entropy of the event, with augmented and mixed latents (Zhang et al. 2018, arXiv:1710.09412).

    Args:
      apply: (params, normalised latent, train, rngs) -> logits of a `models.event_network.EventNetwork`.
      latent_mean, latent_std: per channel of the Mel latent.
      noise: see `augment_latents`.
      mixing: largest share of the latent before that is mixed in.
      smoothing: share of the target that goes to all events alike.
      train: False leaves the latents as they are.
    """

    def loss_fn(params, batch, key):
        k_augment, k_mix, k_drop = jax.random.split(key, 3)
        latent, label = (batch["latent"] - latent_mean) / latent_std, batch["label"]
        if train:
            share = jax.random.uniform(k_mix, (len(label), 1, 1, 1), maxval=mixing)
            latent = augment_latents(latent, k_augment, noise)
            latent = (1.0 - share) * latent + share * jnp.roll(latent, 1, axis=0)
            logits = apply(params, latent, train=True, rngs={"dropout": k_drop})
        else:
            share, logits = jnp.zeros((len(label), 1, 1, 1)), apply(params, latent)
        return _mixed_cross_entropy(logits, label, share[:, 0, 0], smoothing if train else 0.0)

    return loss_fn


def _mixed_cross_entropy(logits: jax.Array, label: jax.Array, share: jax.Array, smoothing: float):
    """Return the loss where a share [B, 1] of each example is the one before it, and {"accuracy": of its own label}."""
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    target = (1.0 - share) * target + share * jnp.roll(target, 1, axis=0)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == label)}


def listener_loss(apply: Callable, amount: float, mixing: float, smoothing: float = 0.05, train: bool = True):
    """Cross-entropy of the event in log-mels, augmented, moved in time, mixed as energies, some bands left out.

    Args:
      apply: (params, log-mel, train, rngs) -> logits of a `models.event_network.EventNetwork`.
      amount: of augmentation, see `augment_content`.
      mixing: largest share of the clip before that is mixed in.
      smoothing: share of the target that goes to all events alike.
      train: False leaves the log-mels as they are.
    """

    def loss_fn(params, batch, key):
        k_augment, k_time, k_mix, k_band, k_bands, k_drop = jax.random.split(key, 6)
        mel, label = batch["mel"], batch["label"]
        n, frames, bands = mel.shape
        if not train:
            return _mixed_cross_entropy(apply(params, mel), label, jnp.zeros((n, 1)), 0.0)
        mel = jax.vmap(lambda x, by: jnp.roll(x, by, axis=0))(mel, jax.random.randint(k_time, (n,), 0, frames))
        mel = augment_content(mel, k_augment, amount)
        share = jax.random.uniform(k_mix, (n, 1, 1), maxval=mixing)
        power = jnp.exp(2.0 * (mel - jnp.max(mel, axis=(1, 2), keepdims=True)))
        mel = 0.5 * jnp.log((1.0 - share) * power + share * jnp.roll(power, 1, axis=0) + 1e-9)
        low = jax.random.randint(k_band, (n, 1, 1), 0, bands)
        high = low + jax.random.randint(k_bands, (n, 1, 1), 0, bands // 6)
        band = jnp.arange(bands)
        mel = jnp.where((band >= low) & (band < high), jnp.min(mel, axis=(1, 2), keepdims=True), mel)
        logits = apply(params, mel, train=True, rngs={"dropout": k_drop})
        return _mixed_cross_entropy(logits, label, share[:, 0], smoothing)

    return loss_fn


def localiser_loss(apply: Callable, azimuths: int, label_std_deg: float):
    """Cross-entropy with a normal curve around the true azimuth; also tells the mean absolute error, degrees."""

    def loss_fn(params, batch, key):
        logits = apply(params, batch["statistics"], train=True, rngs={"dropout": key})
        apart, target = around_circle(batch["azimuth_deg"], azimuths, label_std_deg)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
        error = jnp.take_along_axis(apart, jnp.argmax(logits, axis=-1)[:, None], axis=1)
        return loss, {"azimuth_error_deg": jnp.mean(error), "within_10": jnp.mean(error <= 10.0)}

    return loss_fn
