"""Render mono signals at both ears and compute both spectrograms, jitted, on the device."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax.native import audio as native
from dualspec_jax.ops.analysis import analyse_clips, map_clips
from dualspec_jax.ops.binaural import floor_powers
from dualspec_jax.ops.mel import mel_filters
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import render_sources
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
    sizes = {k: audio[k] for k in ("hop_length", "n_frames", "mel_floor", "stft_floor")}

    sizes["average_frames"] = audio.coherence_frames

    def render_clip(mono, hrir):
        wave = render_sources(mono, hrir)
        return wave * jnp.minimum(1.0, PEAK / jnp.maximum(jnp.abs(wave).max(), 1e-9))

    @jax.jit
    def render(mono, hrir, response):
        floors = floor_powers(response[:, : audio.n_bins], audio.stft_floor)
        if native.can_render(hrir.shape[-1], audio.n_fft, *filters.shape):
            return native.render(mono, hrir, PEAK, floors, filters, **sizes)
        waves = map_clips(render_clip, mono, hrir)
        return waves, *analyse_clips(waves, floors, filters, n_fft=audio.n_fft, **sizes)

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
