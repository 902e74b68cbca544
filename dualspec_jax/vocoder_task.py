"""Task vocoder: learn the waveform behind a log-mel."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax import losses, networks
from dualspec_jax.ops.mel import log_mel, mel_filters, spread_mel
from dualspec_jax.ops.stft import istft, stft
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.task import PICTURES, Model, Task, no_frozen, scene_batches, shape_of
from dualspec_jax.vocoders import make_content


def vocoder_model(config: ConfigDict) -> Model:
    """Return the neural vocoder with its discriminators."""
    audio, v = config.audio, config.vocoder
    n = config.data.crop_frames * audio.hop_length
    network, discriminator = networks.make_vocoder(config), networks.make_spectrogram_discriminator(config)
    log_mel_of, wave_of, content = _transforms(config, n)
    filters = mel_filters(audio)

    def init(key):
        wave = jnp.zeros((1, n))
        mel = log_mel_of(wave)
        keys = jax.random.split(key, 1 + len(losses.RESOLUTIONS))
        levels = losses.log_magnitudes(wave)
        return {
            "generator": network.init(keys[0], mel, spread_mel(mel, filters))["params"],
            "discriminators": [discriminator.init(k, x)["params"] for k, x in zip(keys[1:], levels, strict=True)],
        }

    loss_fn = losses.vocoder_loss(
        log_mel_of,
        lambda params, mel: wave_of(content(params, mel, 0)),
        lambda params, x: discriminator.apply({"params": params}, x),
        stft_weight=v.stft_weight,
        adversarial_weight=v.adversarial_weight,
        feature_weight=v.feature_weight,
    )
    return Model(init, loss_fn, no_frozen, {"wave": shape_of(n)}, network)


def _transforms(config: ConfigDict, n: int) -> tuple[Callable, Callable, Callable]:
    """Return waveform [B, n] -> log-mel, spectrogram -> waveform, and `make_content` for waveforms of n samples."""
    audio = config.audio
    filters = mel_filters(audio)

    def log_mel_of(wave):
        size = {"n_fft": audio.n_fft, "hop_length": audio.hop_length, "n_bins": audio.n_bins}
        spec = stft(wave[..., None], n_frames=n // audio.hop_length, **size)
        return log_mel(spec, filters, audio.mel_floor)[..., 0]

    def wave_of(spec):
        return istft(spec[..., None], n_samples=n, n_fft=audio.n_fft, hop_length=audio.hop_length)[..., 0]

    return log_mel_of, wave_of, make_content(config, n)


def vocoder_task(config: ConfigDict, workdir: Path) -> Task:
    """The neural vocoder on one ear of the scenes, against discriminators."""
    model, mel_iters = vocoder_model(config), config.vocoder.mel_iters
    log_mel_of, wave_of, content = _transforms(config, *model.batch["wave"].shape)

    def rebuilt(params, mel, mel_iters):
        return log_mel_of(wave_of(content(params["generator"], mel, mel_iters)))

    def eval_fn(params, batch, key):
        del key
        mel = log_mel_of(batch["wave"])
        error = lambda mel_iters: jnp.mean(jnp.abs(rebuilt(params, mel, mel_iters) - mel))
        return {"log_mel_l1": error(mel_iters), "network_log_mel_l1": error(0)}

    def pictures(params, batch, key):
        del key
        mel = log_mel_of(batch["wave"][:PICTURES])
        output = np.asarray(rebuilt(params, mel, mel_iters))
        return {f"clip_{i}": spectrogram_image(output[i][..., None], mel[i][..., None]) for i in range(len(mel))}

    batches = scene_batches(config, workdir, "vocoder")
    error = lambda metrics: metrics["log_mel_l1"]
    return Task("vocoder", model.init, model.loss_fn, eval_fn, batches, pictures, error=error)
