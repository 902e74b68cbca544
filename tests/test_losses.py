import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualspec_jax import losses
from dualspec_jax.diffusion.schedule import make_alpha_bar, velocity

KEY = jax.random.key(0)


def test_kl_is_zero_for_the_prior_and_known_for_a_shift():
    zero = jnp.zeros((2, 3))
    assert losses.kl_divergence(zero, zero) == 0.0
    assert losses.kl_divergence(zero + 2.0, zero) == pytest.approx(2.0)


def test_mel_errors_see_level_and_difference_apart():
    target = jnp.zeros((1, 4, 3, 2))
    both = losses.mel_errors(target, target + 0.5)
    assert both["log_mel_l1"] == pytest.approx(0.5) and both["diff_l1"] == pytest.approx(0.0)
    left = losses.mel_errors(target, target + jnp.array([0.5, 0.0]))
    assert left["log_mel_l1"] == pytest.approx(0.25) and left["diff_l1"] == pytest.approx(0.5)


def test_stft_errors_weigh_loud_bins_more():
    target = jnp.zeros((1, 2, 2, 4)).at[..., 2].set(1.0).at[:, :, 0, :2].set(2.0)
    loud = losses.stft_errors(target, target.at[:, :, 0, 2].set(0.0))
    quiet = losses.stft_errors(target, target.at[:, :, 1, 2].set(0.0))
    assert loud["coherence_l1"] == pytest.approx(quiet["coherence_l1"])
    assert loud["coherence_weighted"] > 1.5 * quiet["coherence_weighted"]


def diffusion(denoiser, prediction="v", weight=(1.0, 1.0), gamma=None, static_weight=0.0):
    alpha_bar = make_alpha_bar("cosine", 100)
    loss_fn = losses.diffusion_loss(
        denoiser,
        lambda ids, mask, key: jnp.zeros((*ids.shape, 3)),
        alpha_bar,
        prediction=prediction,
        min_snr_gamma=gamma,
        channel_weight=np.float32(weight),
        latent_mean=np.float32([1.0, 2.0]),
        latent_std=np.float32([2.0, 0.5]),
        static_weight=static_weight,
    )
    latent = np.float32([1.0, 2.0]) + np.float32([2.0, 0.5]) * np.ones((8, 4, 4, 2), np.float32)
    batch = {
        "latent": latent,
        "token_ids": np.zeros((8, 5), np.int32),
        "text_mask": np.ones((8, 5), bool),
        "azimuth_deg": np.zeros(8, np.float32),
        "has_azimuth": np.zeros(8, bool),
    }
    return loss_fn(alpha_bar, batch, KEY)


def exact_velocity(params, x_t, t, *_):
    """The normalised latent is 1 everywhere, so the noise is known."""
    a = jnp.asarray(params)[t][:, None, None, None]
    eps = (x_t - jnp.sqrt(a)) / jnp.sqrt(1 - a)
    return velocity(params, jnp.ones_like(x_t), eps, t)


def test_diffusion_loss_is_zero_for_the_exact_denoiser_of_normalised_latents():
    loss, metrics = diffusion(exact_velocity)
    assert loss == pytest.approx(0.0, abs=1e-5) and metrics["mel"] == pytest.approx(0.0, abs=1e-5)


def test_channel_weight_moves_the_loss_between_branches():
    wrong_stft = lambda *args: exact_velocity(*args) + jnp.array([0.0, 1.0])
    assert diffusion(wrong_stft)[0] == pytest.approx(0.5, abs=1e-4)
    assert diffusion(wrong_stft, weight=(3.0, 1.0))[0] == pytest.approx(0.25, abs=1e-4)
    metrics = diffusion(wrong_stft)[1]
    assert metrics["stft"] == pytest.approx(1.0, abs=1e-4) and metrics["mel"] == pytest.approx(0.0, abs=1e-4)


def test_static_weight_counts_errors_of_the_stft_channels_that_stay_over_time():
    def off_by(change):
        return lambda *args: exact_velocity(*args) + jnp.asarray(change, jnp.float32)

    steady, other = [0.0, 1.0], [1.0, 0.0]
    swinging = np.float32([[0.0, 1.0], [0.0, -1.0]] * 2)[None, :, None]  # the same size, its mean over time is zero
    for change, wanted in ((steady, 0.5 + 0.5 * 3.0), (other, 0.5), (swinging, 0.5)):
        loss, metrics = diffusion(off_by(change), static_weight=3.0)
        assert loss == pytest.approx(wanted, abs=1e-3)
        assert metrics["stft_static"] == pytest.approx(1.0 if change is steady else 0.0, abs=1e-3)
    assert diffusion(off_by(steady))[0] == pytest.approx(0.5, abs=1e-3)


def test_eps_prediction_and_min_snr_are_other_losses():
    zero = lambda params, x_t, *_: jnp.zeros_like(x_t)
    plain = float(diffusion(zero, "v")[0])
    assert float(diffusion(zero, "eps")[0]) != pytest.approx(plain)
    assert float(diffusion(zero, "v", gamma=1.0)[0]) < plain


def test_text_loss_leaves_out_what_the_caption_leaves_out():
    logits = jnp.array([[9.0, 0.0], [0.0, 9.0]])
    apply = lambda params, ids, mask: (logits, jnp.array([9.0, -9.0]), jnp.array([[0.0, 1.0], [5.0, 5.0]]))
    batch = {
        "token_ids": np.zeros((2, 3), np.int32),
        "text_mask": np.ones((2, 3), bool),
        "label": np.array([0, -1]),
        "azimuth_deg": np.float32([0.0, 123.0]),
        "has_direction": np.array([True, False]),
    }
    loss, metrics = losses.text_encoder_loss(apply)(None, batch, KEY)
    assert loss == pytest.approx(0.0, abs=1e-3)
    assert metrics["label_accuracy"] == 1.0 and metrics["azimuth_error_deg"] == pytest.approx(0.0, abs=1e-3)
    # With "none" as the last class, the caption without event counts, and is right.
    loss, metrics = losses.text_encoder_loss(apply, none_is_last=True)(None, batch, KEY)
    assert loss == pytest.approx(0.0, abs=1e-3) and metrics["label_accuracy"] == 1.0
    event = batch | {"label": np.array([0, 0])}
    assert losses.text_encoder_loss(apply, none_is_last=True)(None, event, KEY)[1]["label_accuracy"] == 0.5


def test_an_absent_branch_is_zero_and_must_stay_so():
    """With weight 0 the STFT latents are zero: the exact denoiser of ones there is now wrong, one of zeros is right."""

    def zero_stft(params, x_t, t, *_):
        a = jnp.asarray(params)[t][:, None, None, None]
        x0 = jnp.ones_like(x_t) * jnp.array([1.0, 0.0])
        return velocity(params, x0, (x_t - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a), t)

    loss, _ = diffusion(zero_stft, weight=(1.0, 0.0))
    assert loss == pytest.approx(0.0, abs=1e-5)
    assert diffusion(zero_stft)[0] > 0.1
    wrong = diffusion(lambda *args: zero_stft(*args) + jnp.array([0.0, 1.0]), weight=(1.0, 0.0))[0]
    assert 0.0 < wrong < 0.2


def _decoder_gradients(adversarial_weight, feature_weight=0.0):
    """Return the gradients of a decoder that scales and a discriminator that scales."""
    mel = jax.random.normal(jax.random.key(1), (2, 8, 4, 2))
    loss = losses.mel_decoder_loss(
        lambda vae, x: x + vae,
        lambda vae, scale, z: scale * (z - vae),
        lambda scale, x: [scale * x, scale * jnp.mean(x, axis=-1)],
        diff_weight=0.5,
        adversarial_weight=adversarial_weight,
        feature_weight=feature_weight,
        latent_noise=0.0,
    )
    params = {"decoder": jnp.array(0.5), "discriminator": jnp.array(2.0)}
    return jax.grad(loss, has_aux=True)(params, {"mel": mel}, jax.random.key(0), jnp.array(3.0))


def test_decoder_and_discriminator_learn_apart():
    plain, metrics = _decoder_gradients(0.0)
    # L1 alone: |x - s x| has slope -mean |x|, and the difference of the ears likewise.
    mel = np.asarray(jax.random.normal(jax.random.key(1), (2, 8, 4, 2)))
    wanted = -np.mean(np.abs(mel)) - 0.5 * np.mean(np.abs(mel[..., 0] - mel[..., 1]))
    np.testing.assert_allclose(plain["decoder"], wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["roughness"], 0.5, rtol=1e-5)
    for weights in ((0.7, 0.0), (0.0, 0.7)):
        other, _ = _decoder_gradients(*weights)
        assert abs(float(other["decoder"] - plain["decoder"])) > 1e-3
        np.testing.assert_allclose(other["discriminator"], plain["discriminator"], rtol=1e-6)


def _vocoder_gradients(stft_weight=0.0, adversarial_weight=0.0, feature_weight=0.0):
    """Return the gradients of a vocoder that scales the waveform and of discriminators that scale."""
    wave = jax.random.normal(jax.random.key(1), (2, 1024))
    loss = losses.vocoder_loss(
        lambda x: jnp.log(jnp.abs(x[:, :, None])),
        lambda scale, mel: scale * wave + 0.0 * jnp.sum(mel),
        lambda scale, x: [scale * x, scale * jnp.mean(x, axis=-1)],
        stft_weight=stft_weight,
        adversarial_weight=adversarial_weight,
        feature_weight=feature_weight,
    )
    params = {"generator": jnp.array(0.5), "discriminators": [jnp.array(2.0)] * len(losses.RESOLUTIONS)}
    return jax.grad(loss, has_aux=True)(params, {"wave": wave}, jax.random.key(0))


def test_vocoder_and_discriminators_learn_apart():
    plain, metrics = _vocoder_gradients()
    np.testing.assert_allclose(metrics["log_mel_l1"], np.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(metrics["stft_l1"], np.log(2.0), rtol=1e-3)  # half as loud at every resolution
    np.testing.assert_allclose(plain["generator"], -2.0, rtol=1e-5)  # d|log s| / ds at 1/2
    for weights in ((1.0, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.7)):
        other, _ = _vocoder_gradients(*weights)
        assert abs(float(other["generator"] - plain["generator"])) > 1e-3
        np.testing.assert_allclose(other["discriminators"], plain["discriminators"], rtol=1e-6)
    assert all(float(jnp.abs(g)) > 0 for g in plain["discriminators"])


def test_latent_noise_reaches_the_decoder():
    loss = lambda noise: losses.mel_decoder_loss(
        lambda vae, x: x, lambda vae, scale, z: scale * z, lambda scale, x: [x, x],
        diff_weight=0.0, adversarial_weight=0.0, feature_weight=0.0, latent_noise=noise,
    )  # fmt: skip
    mel = jax.random.normal(jax.random.key(1), (4, 32, 16, 2))
    params = {"decoder": jnp.array(1.0), "discriminator": jnp.array(1.0)}
    errors = [float(loss(n)(params, {"mel": mel}, jax.random.key(0), None)[1]["log_mel_l1"]) for n in (0.0, 0.3)]
    np.testing.assert_allclose(errors, [0.0, 0.3 * np.sqrt(2 / np.pi)], atol=5e-3)


def test_loud_errors_count_a_bin_by_its_amplitude():
    target = np.zeros((2, 10, 8, 4), np.float32)
    target[..., :2] = -8.0
    target[:, :, 1, :2] = 0.0  # one loud band
    quiet, loud, turn = target.copy(), target.copy(), target.copy()
    quiet[:, :, 5, 0] += 1.0
    loud[:, :, 1, 0] += 1.0
    turn[:, ::2, 1, 2], turn[:, 1::2, 1, 2] = 0.5, -0.5  # wrong in turns, right on average
    errors = {name: losses.loud_errors(target, x) for name, x in (("quiet", quiet), ("loud", loud), ("turn", turn))}
    assert errors["quiet"]["loud_ild"] < 1e-3
    assert errors["loud"]["loud_ild"] == pytest.approx(1.0, abs=5e-3)
    assert errors["loud"]["static_ild"] == pytest.approx(1.0, abs=5e-3) and errors["loud"]["loud_coherence"] < 1e-5
    assert errors["turn"]["loud_coherence"] == pytest.approx(0.5, abs=5e-3)
    assert errors["turn"]["static_coherence"] < 1e-4


@pytest.mark.parametrize(("loud_weight", "latent_noise"), [(0.0, 0.0), (3.0, 0.0), (3.0, 0.2)])
def test_stft_decoder_loss_adds_what_is_loud_to_the_reconstruction(loud_weight, latent_noise):
    stft = jax.random.normal(jax.random.key(1), (4, 32, 16, 4))
    loss_fn = losses.stft_decoder_loss(
        lambda vae, x: x, lambda vae, scale, z: scale * z, 0.3, 1.0, loud_weight=loud_weight, latent_noise=latent_noise
    )
    loss, found = loss_fn({"decoder": jnp.array(0.9)}, {"stft": stft}, KEY, None)
    plain = losses.stft_errors(stft, 0.9 * stft)
    wanted = 0.3 * plain["level_l1"] + plain["ild_weighted"] + 2.0 * plain["coherence_weighted"]
    if latent_noise == 0.0:
        heard = losses.loud_errors(stft, 0.9 * stft)
        wanted += loud_weight * (heard["loud_ild"] + heard["static_ild"])
        wanted += loud_weight * 2.0 * (heard["loud_coherence"] + heard["static_coherence"])
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    else:
        assert found["level_l1"] > 1.05 * plain["level_l1"]
