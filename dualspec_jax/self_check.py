"""What a made clip really is: where its sound comes from, how loud it is, and what it sounds like."""

import warnings

import jax
import numpy as np

from dualspec_jax import metrics
from dualspec_jax.event_metrics import Classifier
from dualspec_jax.network_localiser import load_localiser, read_azimuth
from dualspec_jax.ops.mel import log_mel, mel_filters
from dualspec_jax.ops.stft import stft
from dualspec_jax.prompts import Scene
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.sounds import match_sound

LOUDNESS_BLOCK_S = 0.4  # shortest clip that has a loudness (ITU-R BS.1770-4)


def measure_lufs(waveform: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of [N, C] in LUFS; NaN for clips under 0.4 s, -inf for silence.

    Source: ITU-R BS.1770-4, by pyloudnorm.
    """
    import pyloudnorm

    if len(waveform) < LOUDNESS_BLOCK_S * sample_rate:
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the logarithm of silence
        loudness = pyloudnorm.Meter(sample_rate, block_size=LOUDNESS_BLOCK_S).integrated_loudness(waveform)
    return float(loudness)


class SelfCheck:
    """Measure clips one by one.

    Args:
      audio: `config.audio`; clips may be shorter than its n_samples, not longer.
      hrtf: whose templates tell the azimuth, at the clips' sample rate; None takes the trained localiser.
      classifier: None leaves the events out.
    """

    def __init__(self, audio, hrtf: Hrtf | None, classifier: Classifier | None):
        self.audio, self.classifier = audio, classifier
        self._templates, network = None, None
        self.measured_with = "trained localiser" if hrtf is None else hrtf.name
        if hrtf is None:
            network = load_localiser()
        else:
            freqs = np.arange(audio.n_bins) * audio.sample_rate / audio.n_fft
            responses = hrtf.spectrum(np.arange(360.0), audio.n_fft, audio.n_bins)
            self._templates = metrics.TemplateLocaliser(responses, freqs)
        filters = mel_filters(audio)
        size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}

        def analyse(waveform):
            spec = stft(waveform, **size)
            mel = log_mel(spec, filters, audio.mel_floor)
            place = spec[0] if network is None else network.logits(spec)
            return place, mel[0], None if classifier is None else jax.nn.softmax(classifier(mel)[0][0])

        self._analyse = jax.jit(analyse)

    def label(self, scene: Scene) -> str | None:
        """Return the label of the sound that a prompt names; None if it is unknown, or there is no classifier."""
        match = match_sound(scene.prompt)
        known = match.known and self.classifier is not None and match.label in self.classifier.labels
        return match.label if known else None

    def __call__(self, waveform: np.ndarray, scene: Scene) -> tuple[dict, np.ndarray]:
        """Measure one clip, float [N, 2] in [-1, 1].

        Returns:
          A record and the log-mel of both ears [T, M, 2]. In the record, None stands for what cannot be said:
          azimuth_deg (by HRTF templates or the trained localiser), azimuth_error_deg (against the scene; within 15 deg
          of the median plane the lateral error), itd_us and ild_db (positive where the left ear leads or is louder),
          lufs, peak, silent (peak under metrics.SILENT_DBFS), event (most probable label), event_score (probability
          of the asked one).
        """
        rate, n = self.audio.sample_rate, self.audio.n_samples
        padded = np.pad(np.asarray(waveform, np.float32), ((0, n - len(waveform)), (0, 0)))
        place, mel, probabilities = jax.device_get(self._analyse(padded[None]))
        silent = bool(metrics.peak_dbfs(waveform) < metrics.SILENT_DBFS)
        azimuth = float("nan")
        if not silent:
            azimuth = float(read_azimuth(place)[0][0]) if self._templates is None else self._templates.locate(place)
        error = float("nan")
        if scene.azimuth_deg is not None:
            error = float(metrics.azimuth_errors(azimuth, scene.azimuth_deg)["azimuth"])
        measured = {
            "azimuth_deg": _rounded(azimuth, 1),
            "azimuth_error_deg": _rounded(error, 1),
            "itd_us": _rounded(metrics.itd_us(waveform, rate), 1),
            "ild_db": _rounded(metrics.ild_db(waveform, rate), 2),
            "lufs": _rounded(measure_lufs(waveform, rate), 2),
            "peak": _rounded(float(np.abs(waveform).max()), 4),
            "silent": silent,
            "event": None,
            "event_score": None,
        }
        if probabilities is not None and not silent:
            measured["event"] = self.classifier.labels[int(np.argmax(probabilities))]
            label = self.label(scene)
            if label is not None:
                measured["event_score"] = _rounded(float(probabilities[self.classifier.labels.index(label)]), 4)
        return measured, mel

    def can_rank(self, scene: Scene) -> bool:
        """Tell whether clips of a scene can be told better from worse by more than silence."""
        return scene.azimuth_deg is not None or self.label(scene) is not None


def badness(measured: dict) -> float:
    """Return what best-of keeps lowest: azimuth error over 180 deg, plus the event's improbability; silence loses."""
    if measured["silent"]:
        return float("inf")
    error, score = measured["azimuth_error_deg"], measured["event_score"]
    return (0.0 if error is None else error / 180.0) + (0.0 if score is None else 1.0 - score)


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if np.isfinite(value) else None
