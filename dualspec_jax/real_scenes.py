"""Real recordings that training never saw, placed in directions, and their way through the model's stages."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dualspec_jax import losses, networks
from dualspec_jax.bundle import Bundle
from dualspec_jax.ops.binaural import spatial_features
from dualspec_jax.ops.mel import log_mel, mel_filters
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.echo import render_in_room, room_response
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import fit_event, load_clip, render
from dualspec_jax.stages import make_synthesis
from dualspec_jax.vocoders import vocoder_params
from dualspec_jax.wav import peak_gain

DIRECTIONS = 3  # of each recording
GOLDEN = (5**0.5 - 1) / 2
STAGES = ("resynthesis", "round_trip", "round_trip_plain")


@dataclass(frozen=True)
class RealScene:
    """A recording of the `valid` split in one direction.

    Attributes:
      file: as in metadata.csv.
      mono: float32 [N], fitted to a scene.
    """

    index: int
    file: str
    label: str
    azimuth_deg: float
    mono: np.ndarray

    def render(self, hrtf: Hrtf, room_seed: int | None = None) -> np.ndarray:
        """Return the scene, float32 [N, 2].

        Args:
          room_seed: place it in a random room of its own (absorption 0.3 to 0.6, RT60 0.25 to 0.6 s); None: no room.
        """
        if room_seed is None:
            waveform = render(self.mono, self.azimuth_deg, hrtf)
        else:
            rng = np.random.default_rng([room_seed, self.index])
            absorption, rt60 = rng.uniform(0.3, 0.6), rng.uniform(0.25, 0.6)
            response = room_response(hrtf, self.azimuth_deg, rng, absorption=absorption, rt60_s=rt60)
            waveform = render_in_room(self.mono, response)
        return waveform * np.float32(peak_gain(waveform))


def recorded_labels(root: Path, labels: Sequence[str]) -> list[str]:
    """Return those of the labels that have a `valid` recording in <root>/events; errors as `load_scenes`."""
    found = {row["label"] for row in _valid_rows(Path(root))}
    return [label for label in labels if label in found]


def load_scenes(root: Path, labels: Sequence[str], n_samples: int, seed: int) -> list[RealScene]:
    """Fit every `valid` recording of the labels in <root>/events, DIRECTIONS times around the circle each.

    Azimuths follow a golden-ratio sequence from a seeded start, in steps of 0.1 degrees.

    Raises:
      ValueError: no metadata.csv, a missing column, no recording of a label, or an unusable clip.
    """
    path = Path(root) / "events" / "metadata.csv"
    rows = [row for row in _valid_rows(Path(root)) if row["label"] in labels]
    for label in labels:
        if not any(r["label"] == label for r in rows):
            raise ValueError(f"{path} has no recording of {label!r} in split valid")
    rows.sort(key=lambda r: (labels.index(r["label"]), r["file"]))
    start = np.random.default_rng(seed).uniform()
    scenes = []
    for i, row in enumerate(rows):
        clip = load_clip(path.parent / row["file"])
        for index in range(i * DIRECTIONS, (i + 1) * DIRECTIONS):
            azimuth = round(((start + GOLDEN * index) % 1.0) * 360.0, 1) % 360.0
            mono = fit_event(clip, n_samples, np.random.default_rng([seed, index]))
            scenes.append(RealScene(index, row["file"], row["label"], azimuth, mono))
    return scenes


def _valid_rows(root: Path) -> list[dict[str, str]]:
    path = root / "events" / "metadata.csv"
    if not path.is_file():
        raise ValueError(f"data = {str(root)!r}: no events/metadata.csv there")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for column in ("file", "label", "split"):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{path} lacks the column {column!r}")
        return [row for row in reader if row["split"] == "valid"]


def make_stages(bundle: Bundle, vocoder: str) -> Callable:
    """Return the jitted (waveform [B,N,2], floor_response [B,F,2], keys [B]) -> {stage: (waveform, errors)}.

    Stages:
      resynthesis: exact features -> vocoder and spatial filter; no network.
      round_trip: features as the training data has them -> both VAEs (posterior mean) -> vocoder and spatial filter.
      round_trip_plain: the same, the features' floor being without direction (`floor_response=None`).

    `errors` are those of the spectrograms, each [B]: `mel_errors` and `stft_errors` of the decoded features, `ipd_rad`
    (amplitude-weighted), and `resynthesis_l1`, the log-mel L1 (nepers) of the rebuilt waveform.
    """
    config, params = bundle.config, jax.device_put(bundle.params)
    audio = config.audio
    filters = mel_filters(audio)
    size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    synthesise, vocoder_weights = make_synthesis(config, vocoder), vocoder_params(bundle, vocoder)

    def reconstruct(name, x):
        vae, variables = networks.make_vae(config[name]), {"params": params[name]}
        mu, _ = vae.apply(variables, x, method="encode")
        return vae.apply(variables, mu, method="decode")

    def per_clip(errors, target, output):
        return jax.vmap(lambda a, b: errors(a[None], b[None]))(target, output)

    def run(waveform, floor_response, keys):
        spec = stft(waveform, **size)
        mel = log_mel(spec, filters, audio.mel_floor)
        decoded_mel = reconstruct("mel_vae", mel)
        results = {}
        for stage in STAGES:
            response = None if stage == "round_trip_plain" else floor_response
            features = spatial_features(
                spec, floor=audio.stft_floor, average_frames=audio.coherence_frames, floor_response=response
            )
            mel_out, features_out = mel, features
            errors = {}
            if stage != "resynthesis":
                mel_out, features_out = decoded_mel, reconstruct("stft_vae", features)
                errors = per_clip(losses.mel_errors, mel, mel_out)
                errors |= per_clip(losses.stft_errors, features, features_out)
                errors["ipd_rad"] = per_clip(ipd_error, features, features_out)
            rebuilt = synthesise(vocoder_weights, mel_out, features_out, keys)
            rebuilt_mel = log_mel(stft(rebuilt, **size), filters, audio.mel_floor)
            errors["resynthesis_l1"] = jnp.mean(jnp.abs(rebuilt_mel - mel), axis=(1, 2, 3))
            results[stage] = (rebuilt, errors)
        return results

    return jax.jit(run)


def ipd_error(target, output) -> jax.Array:
    """Return the mean interaural phase error of STFT features [B, T, F, 4], rad, bins weighted by their amplitude."""
    gamma, other = (jax.lax.complex(x[..., 2], x[..., 3]) for x in (target, output))
    weight = jnp.exp(0.5 * (target[..., 0] + target[..., 1]))
    return jnp.sum(weight * jnp.abs(jnp.angle(gamma * jnp.conj(other) + 1e-20))) / jnp.sum(weight)
