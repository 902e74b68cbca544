"""Training losses: (params, batch, key) -> (scalar, metrics), one function per task; more in `recognition_losses`.

Each takes the model's apply function and plain numbers; the tasks bind them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dualspec_jax.diffusion.schedule import add_noise, min_snr_weight, velocity
from dualspec_jax.ops.stft import stft

ABSENT_WEIGHT = 0.1  # of the zeros of an absent branch, against the branch that is there


def kl_divergence(mu, logvar):
    """Return KL(N(mu, exp(logvar)) || N(0, 1)), the mean per latent element, nats."""
    return 0.5 * jnp.mean(mu**2 + jnp.exp(logvar) - 1.0 - logvar)


def mel_errors(target, output) -> dict[str, jax.Array]:
    """Return the log-mel L1 (nepers) of the ears and of their difference (the interaural level difference)."""
    difference = (target[..., 0] - target[..., 1]) - (output[..., 0] - output[..., 1])
    return {"log_mel_l1": jnp.mean(jnp.abs(target - output)), "diff_l1": jnp.mean(jnp.abs(difference))}


def mel_vae_loss(apply: Callable, kl_weight: float, diff_weight: float):
    """L1 on both ears' log-mel, L1 on their difference, KL."""

    def loss_fn(params, batch, key):
        output, mu, logvar = apply(params, batch["mel"], key)
        errors = mel_errors(batch["mel"], output)
        kl = kl_divergence(mu, logvar)
        loss = errors["log_mel_l1"] + diff_weight * errors["diff_l1"] + kl_weight * kl
        return loss, errors | {"kl": kl}

    return loss_fn


def roughness(mel) -> jax.Array:
    """Return the mean step of a log-mel from frame to frame, nepers: blur makes it smaller."""
    return jnp.mean(jnp.abs(mel[:, 1:] - mel[:, :-1]))


def mel_decoder_loss(
    encode: Callable,
    decode: Callable,
    discriminate: Callable,
    *,
    diff_weight: float,
    adversarial_weight: float,
    feature_weight: float,
    latent_noise: float,
):
    """L1 as for the Mel-VAE, least-squares adversarial and feature-matching terms, and the discriminator's own loss.

    Both networks learn in one update: each sees the other's parameters as constants.

    Args:
      encode: (frozen VAE parameters, mel) -> latents, which are not trained.
      decode: (frozen VAE parameters, decoder parameters, latents) -> mel.
      discriminate: (parameters, mel) -> features of each layer, scores last.
      latent_noise: standard deviation of the noise on the latents, over that of each channel in the batch.

    Source: Mao et al. 2017 (arXiv:1611.04076) for the least squares; Kong et al. 2020 (arXiv:2010.05646), eqs. 1-4.
    """

    def loss_fn(params, batch, key, vae_params):
        mel = batch["mel"]
        z = jax.lax.stop_gradient(encode(vae_params, mel))
        z = z + latent_noise * jnp.std(z, axis=(0, 1, 2)) * jax.random.normal(key, z.shape)
        output = decode(vae_params, params["decoder"], z)
        errors = mel_errors(mel, output)

        judge = params["discriminator"]
        *_, real = discriminate(judge, mel)
        *_, fake = discriminate(judge, jax.lax.stop_gradient(output))
        discriminator = jnp.mean((real - 1.0) ** 2) + jnp.mean(fake**2)

        fixed = jax.lax.stop_gradient(judge)
        *wanted, _ = discriminate(fixed, mel)
        *seen, score = discriminate(fixed, output)
        adversarial = jnp.mean((score - 1.0) ** 2)
        features = sum(jnp.mean(jnp.abs(a - b)) for a, b in zip(wanted, seen, strict=True)) / len(wanted)
        loss = errors["log_mel_l1"] + diff_weight * errors["diff_l1"] + discriminator
        loss += adversarial_weight * adversarial + feature_weight * features
        parts = {"discriminator": discriminator, "adversarial": adversarial, "features": features}
        return loss, errors | parts | {"roughness": roughness(output) / roughness(mel)}

    return loss_fn


RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # (n_fft, hop) of the vocoder's losses, samples


def log_magnitudes(wave: jax.Array, floor: float = 1e-4) -> list[jax.Array]:
    """Return the log magnitudes [B, t, f, 1] (nepers) of waveforms [B, N] at each of the RESOLUTIONS."""
    found = []
    for n_fft, hop in RESOLUTIONS:
        frames = wave.shape[1] // hop
        spec = stft(wave[..., None], n_fft=n_fft, hop_length=hop, n_frames=frames, n_bins=n_fft // 2)
        found.append(0.5 * jnp.log(jnp.real(spec) ** 2 + jnp.imag(spec) ** 2 + floor**2))
    return found


def vocoder_loss(
    log_mel_of: Callable,
    generate: Callable,
    discriminate: Callable,
    *,
    stft_weight: float,
    adversarial_weight: float,
    feature_weight: float,
):
    """L1 on log-mel and on log magnitudes at three resolutions, least-squares adversarial and feature-matching terms.

    As in `mel_decoder_loss`, all networks learn in one update.

    Args:
      log_mel_of: waveforms [B, N] -> log-mel [B, T, M].
      generate: (parameters, log-mel) -> waveforms [B, N].
      discriminate: (parameters, log magnitudes of one resolution) -> features of each layer, scores last; the
        parameters of the discriminators are a list, one for each of the RESOLUTIONS.

    Source: Siuzdak 2024 (arXiv:2306.00814), section 3.3; Yamamoto et al. 2020 (arXiv:1910.11480) for the resolutions.
    """

    def loss_fn(params, batch, key):
        del key
        mel = log_mel_of(batch["wave"])
        output = generate(params["generator"], mel)
        mel_l1 = jnp.mean(jnp.abs(log_mel_of(output) - mel))
        totals = dict.fromkeys(("stft_l1", "discriminator", "adversarial", "features"), 0.0)
        pairs = zip(params["discriminators"], log_magnitudes(batch["wave"]), log_magnitudes(output), strict=True)
        for judge, wanted, made in pairs:
            *_, real = discriminate(judge, wanted)
            *_, fake = discriminate(judge, jax.lax.stop_gradient(made))
            fixed = jax.lax.stop_gradient(judge)
            *aims, _ = discriminate(fixed, wanted)
            *seen, score = discriminate(fixed, made)
            totals["stft_l1"] += jnp.mean(jnp.abs(wanted - made))
            totals["discriminator"] += jnp.mean((real - 1.0) ** 2) + jnp.mean(fake**2)
            totals["adversarial"] += jnp.mean((score - 1.0) ** 2)
            totals["features"] += sum(jnp.mean(jnp.abs(a - b)) for a, b in zip(aims, seen, strict=True)) / len(aims)
        parts = {name: value / len(RESOLUTIONS) for name, value in totals.items()}
        loss = mel_l1 + stft_weight * parts["stft_l1"] + parts["discriminator"]
        loss += adversarial_weight * parts["adversarial"] + feature_weight * parts["features"]
        return loss, {"log_mel_l1": mel_l1} | parts

    return loss_fn


def stft_errors(target, output) -> dict[str, jax.Array]:
    """Return errors of the STFT features, plain and weighted by amplitude.

    `level_l1` (nepers per ear), `ild_l1` (nepers), `coherence_l1` (modulus of the complex error) are means over bins;
    `*_weighted` count a bin by |S|^0.5 over its mean, at most 8: loud bins decide where a sound is heard.
    """
    level = jnp.abs(target[..., :2] - output[..., :2])
    ild = jnp.abs((target[..., 0] - target[..., 1]) - (output[..., 0] - output[..., 1]))
    coherence = jnp.sqrt(jnp.sum((target[..., 2:] - output[..., 2:]) ** 2, axis=-1) + 1e-8)
    amplitude = jnp.exp(0.25 * (target[..., 0] + target[..., 1]))
    weight = 0.3 + 0.7 * jnp.minimum(amplitude / jnp.mean(amplitude, axis=(1, 2), keepdims=True), 8.0)
    mean = lambda x: jnp.sum(x * weight) / jnp.sum(weight)
    return {
        "level_l1": jnp.mean(level),
        "ild_l1": jnp.mean(ild),
        "coherence_l1": jnp.mean(coherence),
        "ild_weighted": mean(ild),
        "coherence_weighted": mean(coherence),
    }


def stft_vae_loss(apply: Callable, kl_weight: float, level_weight: float, cue_weight: float):
    """L1 on levels, amplitude-weighted L1 on level difference and coherence, KL."""

    def loss_fn(params, batch, key):
        output, mu, logvar = apply(params, batch["stft"], key)
        errors = stft_errors(batch["stft"], output)
        kl = kl_divergence(mu, logvar)
        cues = errors["ild_weighted"] + 2.0 * errors["coherence_weighted"]
        loss = level_weight * errors["level_l1"] + cue_weight * cues + kl_weight * kl
        return loss, errors | {"kl": kl}

    return loss_fn


def loud_errors(target, output) -> dict[str, jax.Array]:
    """Return errors of the cues of STFT features where the sound is loud, bins weighted by their amplitude.

    `loud_ild` (nepers) and `loud_coherence` are those of single bins, `static_ild` and `static_coherence` those of each
    band's weighted mean over time, which tells where a source that does not move is heard. A low sound has its energy
    in a dozen of 512 bins: the weight of `stft_errors` leaves these a few percent of the sum, this one nearly all.
    """
    amplitude = jnp.exp(0.5 * (target[..., 0] + target[..., 1]))
    weight = amplitude / jnp.sum(amplitude, axis=(1, 2), keepdims=True)
    difference = output - target
    ild = difference[..., 0] - difference[..., 1]
    length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12)
    count = target.shape[0]
    return {
        "loud_ild": jnp.sum(weight * jnp.abs(ild)) / count,
        "loud_coherence": jnp.sum(weight * length(difference[..., 2:])) / count,
        "static_ild": jnp.sum(jnp.abs(jnp.sum(weight * ild, axis=1))) / count,
        "static_coherence": jnp.sum(length(jnp.sum(weight[..., None] * difference[..., 2:], axis=1))) / count,
    }


def stft_decoder_loss(
    encode: Callable,
    decode: Callable,
    level_weight: float,
    cue_weight: float,
    *,
    loud_weight: float,
    latent_noise: float,
):
    """The reconstruction terms of `stft_vae_loss`, and `loud_errors`; latents are not trained.

    Args:
      encode, decode, latent_noise: as for `mel_decoder_loss`.
      loud_weight: of the level differences and (twice) coherences of `loud_errors`.
    """

    def loss_fn(params, batch, key, vae_params):
        z = jax.lax.stop_gradient(encode(vae_params, batch["stft"]))
        z = z + latent_noise * jnp.std(z, axis=(0, 1, 2)) * jax.random.normal(key, z.shape)
        output = decode(vae_params, params["decoder"], z)
        errors, loud = stft_errors(batch["stft"], output), loud_errors(batch["stft"], output)
        cues = errors["ild_weighted"] + 2.0 * errors["coherence_weighted"]
        heard = loud["loud_ild"] + loud["static_ild"] + 2.0 * (loud["loud_coherence"] + loud["static_coherence"])
        loss = level_weight * errors["level_l1"] + cue_weight * cues + loud_weight * heard
        return loss, errors | loud

    return loss_fn


def text_encoder_loss(apply: Callable, none_is_last: bool = False):
    """Cross-entropy of the label, of "names a direction", and squared error of sin/cos of the azimuth.

    Examples without direction do not count in the last term, those without event (label -1) not in the first, or, with
    none_is_last, as the last class there.
    """

    def loss_fn(params, batch, key):
        del key
        logits, direction, azimuth = apply(params, batch["token_ids"], batch["text_mask"])
        named = (batch["label"] >= 0) | none_is_last
        label = jnp.where(batch["label"] >= 0, batch["label"], logits.shape[-1] - 1 if none_is_last else 0)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        count = jnp.maximum(jnp.sum(named), 1)
        label_loss = jnp.sum(cross_entropy * named) / count
        angle = jnp.deg2rad(batch["azimuth_deg"])
        target = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        has = batch["has_direction"]
        azimuth_loss = jnp.sum(jnp.sum((azimuth - target) ** 2, axis=-1) * has) / jnp.maximum(jnp.sum(has), 1)
        direction_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(direction, has.astype(jnp.float32)))
        guess = jnp.rad2deg(jnp.arctan2(azimuth[:, 0], azimuth[:, 1]))
        error = jnp.abs((guess - batch["azimuth_deg"] + 180.0) % 360.0 - 180.0)
        metrics = {
            "label_accuracy": jnp.sum((jnp.argmax(logits, axis=-1) == label) * named) / count,
            "azimuth_error_deg": jnp.sum(error * has) / jnp.maximum(jnp.sum(has), 1),
            "direction_accuracy": jnp.mean((direction > 0) == has),
        }
        return label_loss + 4.0 * azimuth_loss + direction_loss, metrics

    return loss_fn


def diffusion_loss(
    denoiser: Callable,
    text_features: Callable,
    alpha_bar: np.ndarray,
    *,
    prediction: str,
    min_snr_gamma: float | None,
    channel_weight: np.ndarray,
    latent_mean: np.ndarray,
    latent_std: np.ndarray,
    static_weight: float = 0.0,
):
    """Squared error of the predicted noise or velocity, in normalised latents.

    Args:
      denoiser: (params, x_t, t, text_emb, text_mask, azimuth_deg, has_azimuth) -> output.
      text_features: (token_ids, text_mask, key) -> [B, L, D], frozen.
      channel_weight: [C], so that Mel and STFT latents can count differently. Channels of weight 0 belong to a branch
        that the model does without: their latents are zero, and that they stay so counts a little.
      latent_mean, latent_std: per channel [C], measured on the training latents.
      static_weight: of the squared mean over time of the error, in the STFT channels, beside the plain one. A source
        that does not move has the same direction in all frames, while what else is unknown averages out over them.

    Steps are stratified over the batch. Source: Ho et al. 2020; Salimans and Ho 2022 for v.
    """
    present = np.asarray(channel_weight) > 0
    weight = np.where(present, channel_weight, ABSENT_WEIGHT * np.max(channel_weight))
    weight = weight / np.mean(weight)
    half = len(channel_weight) // 2

    def loss_fn(params, batch, key):
        k_t, k_noise, k_text = jax.random.split(key, 3)
        x0 = (batch["latent"] - latent_mean) / latent_std * present
        n = x0.shape[0]
        t = (jnp.arange(n) + jax.random.uniform(k_t, (n,))) / n
        t = jnp.minimum((t * len(alpha_bar)).astype(jnp.int32), len(alpha_bar) - 1)
        eps = jax.random.normal(k_noise, x0.shape)
        x_t = add_noise(alpha_bar, x0, eps, t)
        text_emb = text_features(batch["token_ids"], batch["text_mask"], k_text)
        output = denoiser(params, x_t, t, text_emb, batch["text_mask"], batch["azimuth_deg"], batch["has_azimuth"])
        target = velocity(alpha_bar, x0, eps, t) if prediction == "v" else eps
        per_channel = jnp.mean((output - target) ** 2, axis=(1, 2))
        snr_weight = 1.0 if min_snr_gamma is None else min_snr_weight(alpha_bar, t, min_snr_gamma, prediction)[:, None]
        loss = jnp.mean(per_channel * weight * snr_weight)
        static = jnp.mean(jnp.mean(output - target, axis=1)[..., half:] ** 2, axis=1)
        loss += 0.5 * static_weight * jnp.mean(static * weight[half:] * snr_weight)
        parts = {"mel": per_channel[:, :half], "stft": per_channel[:, half:], "stft_static": static}
        return loss, {name: jnp.mean(value) for name, value in parts.items()}

    return loss_fn
