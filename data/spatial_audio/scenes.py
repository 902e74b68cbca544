"""Plan the scenes of a split, and compute them in batches: audio, caption and both spectrograms."""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.sources import Recording, count_labels
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.coding import encode_stft_features
from dualspec_jax.ops.mel import log_mel, mel_filterbank
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import fit_event, render_batch, vary
from dualspec_jax.spatial.sounds import sample_event

SPLITS = ("train", "valid")
PEAK = 0.98  # a rendered ear can be louder than the mono clip; scenes above this are scaled down
GOLDEN = (5**0.5 - 1) / 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say for each scene which recording sounds from where.

    Attributes:
      recording: int64 [n], index into the split's recordings.
      azimuth_deg: float32 [n], in [0, 360), steps of 0.1.
    """

    recording: np.ndarray
    azimuth_deg: np.ndarray


def plan_scenes(recordings: Sequence[Recording], n_scenes: int, split: str, seed: int) -> Plan:
    """Share n_scenes out among the labels by count ** 0.5, within a label evenly among recordings, in random order.

    Azimuths follow a golden-ratio sequence along the scenes sorted by label and recording: every label, and every
    recording with many scenes, gets directions all around.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    labels = count_labels(recordings)
    weight = np.sqrt(np.array(list(labels.values()), np.float64))
    share = n_scenes * weight / weight.sum()
    count = np.floor(share).astype(int)
    count[np.argsort(count - share, kind="stable")[: n_scenes - count.sum()]] += 1  # largest remainders
    recording = []
    for label, n in zip(labels, count, strict=True):
        members = rng.permutation([i for i, r in enumerate(recordings) if r.label == label])
        recording.append(np.sort(np.resize(members, n)))
    recording = np.concatenate(recording)
    azimuth = np.round(((rng.uniform() + GOLDEN * np.arange(n_scenes)) % 1.0) * 360.0, 1) % 360.0
    order = rng.permutation(n_scenes)
    return Plan(recording=recording[order], azimuth_deg=azimuth[order].astype(np.float32))


def generate_scenes(
    recordings: Sequence[Recording],
    clips: Sequence[np.ndarray],
    hrtf: Hrtf,
    audio,
    labels: Sequence[str],
    *,
    plan: Plan,
    scenes: range,
    split: str,
    seed: int,
    batch_size: int = 16,
) -> Iterator[dict]:
    """Yield the records of consecutive scenes; record i depends on the plan, the seed, the split and i alone.

    Args:
      recordings, clips: of this split.
      audio: `config.audio`.
      labels: all labels; `label_index` counts in this list.
      plan: of the whole split.
      scenes: which of the plan's scenes to make.
      split: `train` or `valid`; scenes of `train` vary in speed and level.
    """
    split_index = SPLITS.index(split)
    label_index = {label: i for i, label in enumerate(labels)}
    features = _make_features(audio.to_json())

    def prepare(first: int) -> list[dict]:
        records, monos = [], []
        for i in range(first, min(first + batch_size, scenes.stop)):
            rng = np.random.default_rng([seed, split_index, i])
            recording, azimuth = recordings[plan.recording[i]], float(plan.azimuth_deg[i])
            mono = clips[plan.recording[i]]
            mono = fit_event(vary(mono, rng) if split == "train" else mono, audio.n_samples, rng)
            if split == "train":
                mono = mono * np.float32(10 ** (rng.uniform(-6.0, 0.0) / 20))
            monos.append(mono)
            records.append(
                {
                    "caption": make_caption(sample_event(recording.label, rng), azimuth, rng),
                    "azimuth_deg": np.float32(azimuth),
                    "label": recording.label,
                    "label_index": label_index[recording.label],
                    "licence": recording.licence,
                    "source_file": recording.file,
                    "source_group": recording.source_group,
                }
            )
        azimuths = np.array([r["azimuth_deg"] for r in records] + [0.0] * (batch_size - len(records)))
        mono = np.zeros((batch_size, audio.n_samples), np.float32)  # a last batch is filled up: one compilation
        mono[: len(monos)] = monos
        wave, mel, spatial = jax.device_get(features(mono, hrtf.at(azimuths), hrtf.spectrum(azimuths, audio.n_fft)))
        code = encode_stft_features(spatial)
        for i, record in enumerate(records):
            record |= {"audio": wave[i], "mel": mel[i], "stft": code[i]}
        return records

    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # one batch is computed while another is written
        starts = iter(scenes[::batch_size])
        pending = [pool.submit(prepare, first) for first in itertools.islice(starts, 2)]
        while pending:
            records = pending.pop(0).result()
            pending += [pool.submit(prepare, first) for first in itertools.islice(starts, 1)]
            yield from records


@functools.cache
def _make_features(audio_json: str):
    """Return the jitted (mono [B, N], hrir [B, 2, K], response [B, F, 2]) -> (int16 audio, mel, STFT features)."""
    audio = ConfigDict(json.loads(audio_json))
    filters = mel_filterbank(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax, audio.n_bins)
    sizes = {k: audio[k] for k in ("n_fft", "hop_length", "n_frames", "n_bins")}

    @jax.jit
    def features(mono, hrir, response):
        wave = render_batch(mono, hrir)
        wave = wave * jnp.minimum(1.0, PEAK / jnp.maximum(jnp.abs(wave).max((1, 2), keepdims=True), 1e-9))
        spec = stft(wave, **sizes)
        mel = log_mel(spec, filters, audio.mel_floor).astype(jnp.float16)
        spatial = spatial_features(
            spec,
            floor=audio.stft_floor,
            average_frames=audio.coherence_frames,
            floor_response=response[:, : audio.n_bins],
        )
        return jnp.round(wave * 32767).astype(jnp.int16), mel, spatial

    return features
