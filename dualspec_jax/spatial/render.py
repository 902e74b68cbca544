"""Render mono signals at both ears and compute both spectrograms, jitted, on the device."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filters
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import render_batch
from dualspec_jax.wav import PEAK

BANK_STEP_DEG = 0.5  # between the directions of an HRIR bank: half of what a listener can tell apart in front


@functools.cache
def make_renderer(audio_json: str):
    """Return (mono [B, S, N], hrir [B, S, 2, K], response [B, F, 2]) -> (waveform, mel, stft), jitted.

    The S sources of a scene are summed. `response` is that of the first source's direct sound: it sets the floor of the
    STFT features (`ops.binaural.spatial_features`). waveform [B, N, 2] peaks at most at `PEAK`; mel [B, T, M, 2] and
    stft [B, T, F, 4] are float32.

    Args:
      audio_json: `config.audio.to_json()`.
    """
    audio = ConfigDict(json.loads(audio_json))
    filters = mel_filters(audio)
    sizes = {k: audio[k] for k in ("n_fft", "hop_length", "n_frames", "n_bins")}

    @jax.jit
    def render(mono, hrir, response):
        n_batch, n_sources = mono.shape[:2]
        wave = render_batch(mono.reshape(-1, mono.shape[-1]), hrir.reshape(-1, *hrir.shape[2:]))
        wave = wave.reshape(n_batch, n_sources, *wave.shape[1:]).sum(1)
        wave = wave * jnp.minimum(1.0, PEAK / jnp.maximum(jnp.abs(wave).max((1, 2), keepdims=True), 1e-9))
        spec = stft(wave, **sizes)
        mel = log_mel(spec, filters, audio.mel_floor)
        spatial = spatial_features(
            spec,
            floor=audio.stft_floor,
            average_frames=audio.coherence_frames,
            floor_response=response[:, : audio.n_bins],
        )
        return wave, mel, spatial

    return render


class HrirBank:
    """Hold one head's responses for directions all around, on the device.

    Attributes:
      hrir: float32 [D, 2, K]; D directions, `BANK_STEP_DEG` apart, from 0 on.
      response: complex64 [D, F, 2].
    """

    def __init__(self, hrtf: Hrtf, n_fft: int, n_bins: int):
        azimuths = np.arange(0.0, 360.0, BANK_STEP_DEG)
        self.hrir = jnp.asarray(hrtf.at(azimuths))
        self.response = jnp.asarray(hrtf.spectrum(azimuths, n_fft, n_bins))

    def index(self, azimuth_deg):
        """Return the index of the nearest direction to each of [B] azimuths."""
        return jnp.round(jnp.asarray(azimuth_deg) / BANK_STEP_DEG).astype(jnp.int32) % len(self.hrir)


def make_bank_renderer(bank: HrirBank, audio):
    """Return (mono [B, N], azimuth_deg [B]) -> (waveform [B, N, 2], mel [B, T, M, 2], stft [B, T, F, 4]), jitted.

    Args:
      audio: `config.audio`.
    """
    render = make_renderer(audio.to_json())

    @jax.jit
    def render_azimuths(mono, azimuth_deg, hrirs, responses):
        i = bank.index(azimuth_deg)
        return render(mono[:, None], hrirs[i][:, None], responses[i])

    return lambda mono, azimuth_deg: render_azimuths(mono, azimuth_deg, bank.hrir, bank.response)
