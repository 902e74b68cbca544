"""The stages of making a clip as functions: encode the words, sample, rank, decode, vocode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dualspec_jax import networks
from dualspec_jax.bundle import Bundle
from dualspec_jax.config import VOCODERS
from dualspec_jax.diffusion.direction_prior import steer
from dualspec_jax.diffusion.guidance import guide, guide_to_event
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import advance, start_carry
from dualspec_jax.models.event_network import level_free, log_agreement
from dualspec_jax.models.text_encoder import read_direction
from dualspec_jax.ops.binaural import phase_noise, spatial_filter
from dualspec_jax.ops.mel import log_mel, mel_filters, sum_ears
from dualspec_jax.ops.stft import istft, stft
from dualspec_jax.ops.texture import pool_frames
from dualspec_jax.single_branch import branch_of, make_single_synthesis
from dualspec_jax.vocoders import make_vocoder

FINE_STRUCTURE_HZ = 1400.0  # below it phases are heard as a time difference, and stay as generated


def make_synthesis(config, vocoder: str) -> Callable:
    """Return (parameters of the vocoder, mel [B,T,M,2], features [B,T,F,4], keys [B]) -> waveform [B,N,2].

    DESIGN.md section 3. A model of one branch (an ablation) has its own synthesis, without a choice of vocoder.

    Raises:
      ValueError: unknown vocoder.
    """
    if branch := branch_of(config):
        synthesise_one = make_single_synthesis(config, branch)
        return lambda params, mel, features, keys: synthesise_one(mel, features, keys)
    audio = config.audio
    vocode = make_vocoder(config, vocoder)

    def synthesise(params, mel, features, keys) -> Float[jax.Array, "B N 2"]:
        noise = jax.vmap(lambda key: phase_noise(jax.random.fold_in(key, 1), *features.shape[1:3]))(keys)
        noise = noise * (np.arange(audio.n_bins) * audio.sample_rate / audio.n_fft >= FINE_STRUCTURE_HZ)
        ears = spatial_filter(vocode(params, mel, features, keys), features, noise)
        return istft(ears, n_samples=audio.n_samples, n_fft=audio.n_fft, hop_length=audio.hop_length)

    return synthesise


def readers(params: dict) -> dict:
    """Return the parameters of the networks that read text."""
    return {name: params[name] for name in ("text_encoder", "reader") if name in params}


def samplers(params: dict) -> dict:
    """Return the parameters of the networks that the sampler asks at each step."""
    return {name: params[name] for name in ("unet", "event_guide") if name in params}


def make_stages(bundle: Bundle) -> dict[str, tuple[Callable, tuple[bool, ...]]]:
    """Return the stages by name, each with whether its arguments have a batch axis.

    encode: `readers`, inputs -> (conditions: words and azimuth, words alone, neither; the sampler's start; logits of
      the events that the words name, None if the text encoder names none).
    rank: parameters of the listener, waveform, logits of the events -> how probable it is that they agree.
    sample, sample_in_interval: `samplers`, conditions, carry, rows, seeds, logits of the events, scale, guided steps,
      rescale, scale of the guidance to the event -> carry.
    decode: all parameters, latent, azimuths, which are known, direction noise -> (log-mel, STFT features).
    one per vocoder: vocoder parameters (of a bundle without: none), log-mel, features, seeds -> waveform.
    """
    config = bundle.config
    text_encoder, unet = networks.make_text_encoder(config.text), networks.make_unet(config.unet)
    reader, names_events = networks.make_reader(config), config.text.event_codes > 0
    event_guide = networks.make_event_guide(config) if names_events else None
    listener = networks.make_listener(config) if names_events else None
    mel_vae, stft_vae = networks.make_vae(config.mel_vae), networks.make_vae(config.stft_vae)
    alpha_bar = make_alpha_bar(config.diffusion.schedule, config.diffusion.num_steps)
    n_mel, shape = config.mel_vae.latent_channels, networks.latent_shape(config)

    def keys_for(seeds, use: int):
        """Return the keys of the samples for the start (0), the sampler (1) or the vocoder (2)."""
        return jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3)[use])(seeds)

    def encode(params, inputs):
        variables, events = {"params": params["text_encoder"]}, None
        text_emb = text_encoder.apply(variables, inputs["ids"], inputs["mask"], with_events=names_events)
        if names_events:
            text_emb, events = text_emb
        azimuth_deg, has_azimuth = inputs["azimuth_deg"], inputs["has_azimuth"]
        if "reader" in params:  # the network reads what the rules of `prompts.complete` were not asked to
            found, named = read_direction(reader.apply({"params": params["reader"]}, text_emb, inputs["mask"]))
            asked = inputs["text_only"] & ~has_azimuth
            azimuth_deg = jnp.where(asked, found, azimuth_deg)
            has_azimuth = has_azimuth | (asked & named)
        condition = {
            "text_emb": text_emb,
            "text_mask": inputs["mask"],
            "azimuth_deg": azimuth_deg,
            "has_azimuth": has_azimuth,
        }
        null = {
            "text_emb": text_encoder.apply(variables, inputs["negative_ids"], inputs["negative_mask"]),
            "text_mask": inputs["negative_mask"],
            "azimuth_deg": azimuth_deg,
            "has_azimuth": jnp.zeros_like(has_azimuth),
        }
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_for(inputs["seed"], 0))
        words = condition | {"has_azimuth": null["has_azimuth"]}
        return (condition, words, null), start_carry(noise), events

    def rank(params, waveform, events):
        size = {name: config.audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
        mel = log_mel(stft(waveform, **size), mel_filters(config.audio), config.audio.mel_floor)
        content = pool_frames(sum_ears(mel), config.listener.pool)
        return jnp.exp(log_agreement(listener.apply({"params": params}, level_free(content)), events))

    def sample(params, conditions, carry, rows, seeds, events, scale, guided_steps, rescale, pull, limited=False):
        denoiser = lambda x, t, **c: unet.apply({"params": params["unet"]}, x, t, **c)
        condition, words, null = conditions
        is_mel = jnp.arange(shape[-1]) < n_mel
        interval = guided_steps if limited else None
        guided = guide(denoiser, condition, null, scale, interval, content=(words, is_mel), rescale=rescale)
        if "event_guide" in params:
            logits = lambda x0: event_guide.apply({"params": params["event_guide"]}, x0[..., :n_mel])
            heard = lambda x0: log_agreement(logits(x0), events)
            guided = guide_to_event(guided, heard, pull, alpha_bar, config.diffusion.prediction, is_mel)
        return advance(guided, carry, keys_for(seeds, 1), alpha_bar, rows, config.diffusion.prediction)

    def sample_in_interval(*args):
        return sample(*args, limited=True)

    def decode(params, latent, azimuth_deg, has_azimuth, direction_noise):
        if "direction" in params:
            steered = steer(params["direction"], latent[..., n_mel:], azimuth_deg, has_azimuth, direction_noise)
            latent = jnp.concatenate([latent[..., :n_mel], steered], axis=-1)
        z = latent * bundle.latent_std + bundle.latent_mean
        mel = mel_vae.apply({"params": params["mel_vae"]}, z[..., :n_mel], method="decode")
        return mel, stft_vae.apply({"params": params["stft_vae"]}, z[..., n_mel:], method="decode")

    def vocode(name):
        synthesise = make_synthesis(config, name)
        return lambda params, mel, features, seeds: synthesise(params, mel, features, keys_for(seeds, 2))

    sampler_args = (False, True, True, False, True, True, False, False, False, False)
    functions = {
        "encode": (encode, (False, True)),
        "rank": (rank, (False, True, True)),
        "sample": (sample, sampler_args),
        "sample_in_interval": (sample_in_interval, sampler_args),
        "decode": (decode, (False, True, True, True, False)),
    }
    return functions | {name: (vocode(name), (False, True, True, True)) for name in VOCODERS}
