import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax import recognition_losses as losses

KEY = jax.random.key(0)


def test_classifier_loss_sees_augmented_clips_and_the_label():
    seen = {}

    def apply(params, mel, train, rngs):
        seen["mel"] = mel
        return 20.0 * jax.nn.one_hot(jnp.array([0, 1, 2, 1]), 3), None

    batch = {"mel": np.random.default_rng(0).normal(size=(4, 128, 16)).astype(np.float32), "label": np.arange(4) % 3}
    loss, metrics = losses.classifier_loss(apply, 3, 0.9, smoothing=0.0)(None, batch, KEY)
    assert metrics["accuracy"] == 0.75 and loss == pytest.approx(5.0, rel=1e-4)  # one of four, 20 nats wrong
    assert seen["mel"].shape == (4, 128, 16) and np.isfinite(seen["mel"]).all()
    assert np.all(np.abs(seen["mel"] - batch["mel"]).mean(axis=(1, 2)) > 0.05)
    smooth, _ = losses.classifier_loss(apply, 3, 0.9, smoothing=0.3)(None, batch, KEY)
    assert smooth > loss


def test_augmentation_of_nothing_changes_nothing():
    mel = np.random.default_rng(0).normal(size=(3, 32, 16)).astype(np.float32)
    np.testing.assert_allclose(losses.augment_content(mel, KEY, 0.0), mel, atol=1e-4)


def test_event_guide_loss_sees_normalised_latents_varied_in_training_and_mixes_their_events():
    seen = {}

    def apply(params, latent, **kwargs):
        seen.update(latent=latent, **kwargs)
        return 20.0 * jax.nn.one_hot(jnp.array([0, 1, 2, 1]), 3)

    latent = 2.0 * np.random.default_rng(0).normal(size=(4, 32, 8, 2)).astype(np.float32) + 1.0
    batch = {"latent": latent, "label": np.arange(4) % 3}
    make = lambda **kwargs: losses.event_guide_loss(apply, np.float32([1, 1]), np.float32([2, 2]), **kwargs)
    loss, metrics = make(noise=0.5, mixing=0.0, train=False)(None, batch, KEY)
    assert metrics["accuracy"] == 0.75 and loss == pytest.approx(5.0, rel=1e-4)  # one of four, 20 nats wrong
    np.testing.assert_allclose(seen["latent"], (latent - 1.0) / 2.0, atol=1e-6)
    assert "train" not in seen
    trained, _ = make(noise=0.5, mixing=0.0, smoothing=0.0)(None, batch, KEY)
    assert trained == pytest.approx(5.0, rel=1e-4) and seen["train"]
    assert np.abs(seen["latent"] - (latent - 1.0) / 2.0).mean() > 0.05
    mixed, _ = make(noise=0.5, mixing=0.4, smoothing=0.0)(None, batch, KEY)
    assert trained + 1.0 < mixed < trained + 0.4 * 20.0


def test_listener_loss_sees_clips_moved_augmented_and_mixed_in_training_only():
    seen = {}

    def apply(params, mel, **kwargs):
        seen.update(mel=mel, **kwargs)
        return 20.0 * jax.nn.one_hot(jnp.array([0, 1, 2, 1]), 3)

    mel = np.random.default_rng(0).normal(size=(4, 64, 24)).astype(np.float32)
    batch = {"mel": mel, "label": np.arange(4) % 3}
    make = lambda **kwargs: losses.listener_loss(apply, **kwargs)
    loss, metrics = make(amount=0.5, mixing=0.4, train=False)(None, batch, KEY)
    assert metrics["accuracy"] == 0.75 and loss == pytest.approx(5.0, rel=1e-4)  # one of four, 20 nats wrong
    np.testing.assert_array_equal(seen["mel"], mel)
    assert "train" not in seen
    trained, _ = make(amount=0.0, mixing=0.0, smoothing=0.0)(None, batch, KEY)
    assert trained == pytest.approx(5.0, rel=1e-4) and seen["train"]
    for moved, clip in zip(np.asarray(seen["mel"]), mel - mel.max((1, 2), keepdims=True), strict=True):
        kept = moved.max(0) > moved.min() + 1e-3  # bands that were not left out: at most three of 24
        assert kept.sum() >= 21
        by = [np.abs(np.roll(clip, shift, axis=0) - moved)[:, kept].max() for shift in range(64)]
        assert min(by) < 1e-2
    mixed, _ = make(amount=0.0, mixing=0.4, smoothing=0.0)(None, batch, KEY)
    assert trained + 1.0 < mixed < trained + 0.4 * 20.0


def test_latents_are_varied_row_by_row_and_frame_by_frame():
    latent = jnp.ones((64, 32, 8, 2))
    plain = losses.augment_latents(latent, KEY, 0.0)
    left_out = np.all(np.asarray(plain) == 0.0, axis=-1)
    rows, frames = left_out.all(1), left_out.all(2)
    assert rows.sum(1).max() == 3 and frames.sum(1).max() <= 8 and frames.sum() > 64
    noisy = losses.augment_latents(latent, KEY, 0.8)
    deviation = np.where(left_out[..., None], np.nan, np.asarray(noisy - plain))
    deviation = np.nanstd(deviation, axis=(1, 2, 3))
    assert deviation.min() < 0.1 < 0.6 < deviation.max() < 0.85


def test_localiser_loss_knows_the_circle():
    logits = -100.0 * jnp.ones((2, 36)).at[:, 0].set(0.0)  # sure of the front
    apply = lambda params, statistics, train, rngs: logits
    batch = {"statistics": np.zeros((2, 8, 4), np.float32), "azimuth_deg": np.float32([359.0, 180.0])}
    near, _ = losses.localiser_loss(apply, 36, 1.0)(None, {k: v[:1].repeat(2, 0) for k, v in batch.items()}, KEY)
    loss, metrics = losses.localiser_loss(apply, 36, 1.0)(None, batch, KEY)
    assert near < 1e-3 < loss
    assert metrics["azimuth_error_deg"] == pytest.approx((1.0 + 180.0) / 2) and metrics["within_10"] == 0.5


def test_reader_loss_knows_the_circle_and_none():
    logits = jnp.full((3, 37), -50.0).at[0, 0].set(0.0).at[1, 18].set(0.0).at[2, 36].set(0.0)
    apply = lambda params, ids, mask, encoder: logits
    batch = {
        "token_ids": np.zeros((3, 4), np.int32),
        "text_mask": np.ones((3, 4), bool),
        "azimuth_deg": np.float32([359.0, 180.0, 0.0]),
        "has_direction": np.array([True, True, False]),
    }
    loss, metrics = losses.reader_loss(apply, 36, 1.0)(None, batch, KEY, None)
    assert loss == pytest.approx(0.0, abs=1e-3)
    assert metrics["azimuth_error_deg"] == pytest.approx(0.5, abs=1e-3) and metrics["direction_accuracy"] == 1.0
    wrong = batch | {"has_direction": np.array([True, False, True])}
    assert losses.reader_loss(apply, 36, 1.0)(None, wrong, KEY, None)[1]["direction_accuracy"] == pytest.approx(1 / 3)
