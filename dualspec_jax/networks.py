"""Config sections -> linen modules. The modules themselves see plain numbers only."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from dualspec_jax.models.classifier import EventClassifier
from dualspec_jax.models.discriminator import PatchDiscriminator
from dualspec_jax.models.event_network import EventNetwork
from dualspec_jax.models.localiser import AzimuthNetwork
from dualspec_jax.models.text_encoder import DirectionReader, T5Encoder
from dualspec_jax.models.unet import UNet
from dualspec_jax.models.vae import AutoencoderKL
from dualspec_jax.models.vocoder import Vocoder


def make_vae(section: ConfigDict, dtype: jnp.dtype = jnp.float32, remat: bool = False) -> AutoencoderKL:
    """Return the autoencoder of `config.mel_vae` or `config.stft_vae`."""
    fields = ("in_channels", "patch", "channels", "strides", "layers_per_block", "latent_channels", "norm_groups")
    fields += ("mid_attention", "input_mean", "input_std")
    return AutoencoderKL(**{name: _frozen(section[name]) for name in fields}, dtype=dtype, remat=remat)


def make_discriminator(config: ConfigDict) -> PatchDiscriminator:
    """Return the discriminator that the Mel-VAE's decoder is trained against."""
    return PatchDiscriminator(tuple(config.mel_decoder.discriminator_channels), *_mel_scale(config))


def make_latent_encoder(config: ConfigDict):
    """Return (params of both VAEs, mel [B, T, M, 2], stft [B, T, F, 4]) -> latents [B, t, f, C] float32, Mel first."""
    mel_vae, stft_vae = make_vae(config.mel_vae), make_vae(config.stft_vae)

    def encode(params, mel, stft):
        mel_mu, _ = mel_vae.apply({"params": params["mel_vae"]}, mel, method="encode")
        stft_mu, _ = stft_vae.apply({"params": params["stft_vae"]}, stft, method="encode")
        return jnp.concatenate([mel_mu, stft_mu], axis=-1)

    return encode


def make_text_encoder(section: ConfigDict, dtype: jnp.dtype = jnp.float32) -> T5Encoder:
    """Return the text encoder of `config.text`."""
    fields = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    fields += ("relative_buckets", "relative_max_distance", "event_codes")
    return T5Encoder(**{name: section[name] for name in fields}, dtype=dtype)


def make_reader(config: ConfigDict) -> DirectionReader:
    """Return the reader of `config.reader`."""
    r = config.reader
    return DirectionReader(r.azimuths, r.queries, r.hidden, r.width)


def make_event_guide(config: ConfigDict) -> EventNetwork:
    """Return the event guide of `config.event_guide`, for the events of `config.text`.

    Raises:
      ValueError: the text encoder tells no events apart.
    """
    return _event_network(config, "event_guide")


def make_listener(config: ConfigDict) -> EventNetwork:
    """Return the listener of `config.listener`, for the events of `config.text`.

    Raises:
      ValueError: the text encoder tells no events apart.
    """
    return _event_network(config, "listener", halve_first=True, peaks=True)


def _event_network(config: ConfigDict, name: str, **kind) -> EventNetwork:
    section, codes = config[name], config.text.event_codes
    if not codes:
        raise ValueError(f"config.text.event_codes = 0: task {name} needs a text encoder that names the event")
    sizes = tuple(section.channels), section.hidden, section.norm_groups, section.dropout
    return EventNetwork(codes - 1, *sizes, **kind)


def make_unet(section: ConfigDict, dtype: jnp.dtype = jnp.float32, remat: bool = False) -> UNet:
    """Return the denoiser of `config.unet`."""
    return UNet(**{name: _frozen(value) for name, value in section.items()}, dtype=dtype, remat=remat)


def make_vocoder(config: ConfigDict) -> Vocoder:
    """Return the neural vocoder of `config.vocoder`."""
    v = config.vocoder
    mean, std = _mel_scale(config)
    return Vocoder(v.channels, v.layers, v.hidden, mean, std)


def make_spectrogram_discriminator(config: ConfigDict) -> PatchDiscriminator:
    """Return the discriminator of log magnitudes that the vocoder is trained against, the same at each resolution."""
    return PatchDiscriminator(tuple(config.vocoder.discriminator_channels), *_mel_scale(config))


def _mel_scale(config: ConfigDict) -> tuple[float, float]:
    v = config.mel_vae
    return sum(v.input_mean) / len(v.input_mean), sum(v.input_std) / len(v.input_std)


def make_classifier(section: ConfigDict, num_labels: int, frame_rate: float) -> EventClassifier:
    """Return the event classifier of `config.classifier` for a number of labels.

    Args:
      frame_rate: of the log-mel before pooling, frames per second.
    """
    return EventClassifier(num_labels, tuple(section.hidden), section.dropout, frame_rate / section.pool)


def make_localiser(section: ConfigDict, audio: ConfigDict) -> AzimuthNetwork:
    """Return the localiser of `config.localiser` for clips of `config.audio`."""
    sizes = section.azimuths, tuple(section.hidden), section.dropout
    return AzimuthNetwork(*sizes, sample_rate=audio.sample_rate, n_fft=audio.n_fft)


def _frozen(value):
    """Turn the lists that JSON makes of tuples back into tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def latent_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return (t, f, C) of the joint latent; Mel channels come first."""
    v = config.mel_vae
    t, f = config.audio.n_frames // v.patch[0], config.audio.n_mels // v.patch[1]
    for stride in v.strides:
        t, f = t // stride[0], f // stride[1]
    return t, f, v.latent_channels + config.stft_vae.latent_channels
