"""Measure single clips: where the sound comes from, what it is, how loud it is."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from dualspec_jax import metrics
from dualspec_jax.copying import CopyIndex
from dualspec_jax.distribution_metrics import softmax
from dualspec_jax.event_metrics import Classifier
from dualspec_jax.network_localiser import NetworkLocaliser, read_azimuth
from dualspec_jax.ops.mel import log_mel, mel_filters, sum_ears
from dualspec_jax.ops.stft import stft
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import render
from dualspec_jax.wav import to_pcm16

SILENT_ERROR_DEG = 90.0  # azimuth error of a silent clip: the mean error of a guess
NOISE_S = 5.0
_NOISE_SEED = 0
VECTORS = ("probabilities", "embedding")  # arrays in a record: of the classifier's labels, of its last layer


class ClipJudge:
    """Measure clips against the HRTF of the azimuth that was asked for.

    Targets of the interaural time and level differences are those of white noise rendered at the asked azimuth,
    measured by the same functions as the clip. A real recording rendered there misses them by some 26 us and 0.8 dB on
    average, as these measures depend on the sound's own spectrum: that is the floor of the two errors.

    Args:
      hrtf: at the clips' sample rate.
      audio: `config.audio`.
      classifier: None leaves the events out.
      choices: labels of the easier question "which of these?".
      localiser: a second localiser beside the template matcher; None leaves it out.
      copies: training recordings, for the field `copy_similarity`; None leaves it out.
      rooms: whether the template matcher reads clips made in rooms, see `metrics.IN_ROOMS`.

    Raises:
      ValueError: the classifier does not know one of the choices.
    """

    def __init__(
        self,
        hrtf: Hrtf,
        audio,
        classifier: Classifier | None,
        choices: Sequence[str],
        batch_size: int = 8,
        localiser: NetworkLocaliser | None = None,
        copies: CopyIndex | None = None,
        rooms: bool = False,
    ):
        self.copies = copies
        self.hrtf, self.audio, self.classifier, self.batch_size = hrtf, audio, classifier, batch_size
        self.choices = tuple(choices)
        if classifier is not None:
            for label in self.choices:
                if label not in classifier.labels:
                    raise ValueError(f"classifier: it does not know the label {label!r}")
            self._choice_index = [classifier.labels.index(label) for label in self.choices]
        freqs = np.arange(audio.n_bins) * audio.sample_rate / audio.n_fft
        templates = hrtf.spectrum(np.arange(360.0), audio.n_fft, audio.n_bins)
        self.localiser = metrics.TemplateLocaliser(templates, freqs, **(metrics.IN_ROOMS if rooms else {}))
        filters = mel_filters(audio)
        size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}

        def analyse(waveform):
            spec = stft(waveform, **size)
            mel = log_mel(spec, filters, audio.mel_floor)
            events = None if classifier is None else classifier(mel)
            return spec, mel, events, None if localiser is None else localiser.logits(spec)

        self._analyse = jax.jit(analyse)
        self.target_cues = functools.lru_cache(maxsize=None)(self._target_cues)

    def _target_cues(self, azimuth_deg: float) -> tuple[float, float]:
        """Return ITD (us) and ILD (dB) of the HRTF at an azimuth, measured on white noise rendered there."""
        rate = self.audio.sample_rate
        noise = 0.1 * np.random.default_rng(_NOISE_SEED).standard_normal(int(NOISE_S * rate)).astype(np.float32)
        ears = render(noise, azimuth_deg, self.hrtf)
        return metrics.itd_us(ears, rate), metrics.ild_db(ears, rate)

    def __call__(self, waveforms: np.ndarray, azimuths_deg: Sequence[float], labels: Sequence[str]) -> list[dict]:
        """Return one record per clip of [n, N, 2], n at most `batch_size`, as it would be written to a WAV file.

        With a classifier, a record also holds the arrays VECTORS. Label "" leaves open what the sound should be.

        A silent clip (peak below metrics.SILENT_DBFS) has no direction and no event: it counts as SILENT_ERROR_DEG
        wrong, as confused between front and back where that is scored, as ITD 0 and ILD 0, and as a wrong event.
        """
        n = len(waveforms)
        pcm = np.stack([to_pcm16(w) for w in waveforms]).astype(np.float32) / 32767.0
        filled = np.concatenate([pcm, np.zeros((self.batch_size - n, *pcm.shape[1:]), np.float32)])
        spec, mel, events, directions = jax.device_get(self._analyse(filled))
        records = []
        for i in range(n):
            record = self._judge(pcm[i], spec[i], float(azimuths_deg[i]), labels[i])
            if directions is not None:
                record |= _network_direction(directions[i], record)
            if events is not None:
                record |= self._judge_event(events[0][i], events[1][i], record)
            if self.copies is not None:
                content = np.asarray(sum_ears(mel[i]))
                record["copy_similarity"] = float("nan") if record["silent"] else self.copies.similarity(content)
            records.append(record)
        return records

    def _judge(self, waveform, spec, asked: float, label: str) -> dict:
        rate = self.audio.sample_rate
        peak = metrics.peak_dbfs(waveform)
        silent = bool(peak < metrics.SILENT_DBFS)
        measured = float("nan") if silent else self.localiser.locate(spec)
        errors = {name: float(value) for name, value in metrics.azimuth_errors(measured, asked).items()}
        if np.isnan(measured):
            silent = True
            scored = bool(metrics.front_back_scored(asked))
            errors = dict.fromkeys(("azimuth", "lateral", "resolved"), SILENT_ERROR_DEG)
            errors["front_back"] = 1.0 if scored else float("nan")
        itd, ild = (0.0, 0.0) if silent else (metrics.itd_us(waveform, rate), metrics.ild_db(waveform, rate))
        itd, ild = float(np.nan_to_num(itd)), float(np.nan_to_num(ild))  # no energy in the band: no cue
        target_itd, target_ild = self.target_cues(asked)
        bands = metrics.ild_bands_db(waveform, rate)
        return {
            "label": label,
            "asked_deg": asked,
            "measured_deg": measured,
            "azimuth_error_deg": errors["azimuth"],
            "lateral_error_deg": errors["lateral"],
            "resolved_error_deg": errors["resolved"],
            **{f"within_{limit}": float(errors["azimuth"] <= limit) for limit in (5, 15, 30)},
            "same_side": float(metrics.same_side(360.0 - asked if silent else measured, asked)),
            "front_back": errors["front_back"],
            "itd_us": itd,
            "target_itd_us": target_itd,
            "itd_error_us": abs(itd - target_itd),
            "ild_db": ild,
            "target_ild_db": target_ild,
            "ild_error_db": abs(ild - target_ild),
            "ild_bands_db": [float(x) for x in bands],
            "coherence": metrics.interaural_coherence(waveform, rate),
            "peak_dbfs": peak,
            "silent": float(silent),
        }

    def _judge_event(self, logits, embedding, record: dict) -> dict:
        label, silent = record["label"], bool(record["silent"])
        heard = self.classifier.labels[int(np.argmax(logits))]
        chosen = self.choices[int(np.argmax(logits[self._choice_index]))]
        found = {"heard": heard, "chosen": chosen, "probabilities": softmax(logits), "embedding": np.float64(embedding)}
        if label:
            found["event_all"] = float(heard == label and not silent)
        if label in self.choices:
            found["event_set"] = float(chosen == label and not silent)
        return found

    def content_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel of one clip [N, 2], ears summed, as [T, M], nepers."""
        filled = np.concatenate([waveform[None], np.zeros((self.batch_size - 1, *waveform.shape), np.float32)])
        return np.asarray(sum_ears(self._analyse(filled)[1]))[0]


def _network_direction(logits: np.ndarray, record: dict) -> dict:
    """Return azimuth, error, confusion and confidence of the network, silence scored as for the template matcher."""
    azimuths, confidences = read_azimuth(logits[None])
    measured = float("nan") if record["silent"] else float(azimuths[0])
    errors = metrics.azimuth_errors(measured, record["asked_deg"])
    scored = bool(metrics.front_back_scored(record["asked_deg"]))
    silent_confusion = 1.0 if scored else float("nan")
    return {
        "network_deg": measured,
        "network_error_deg": SILENT_ERROR_DEG if record["silent"] else float(errors["azimuth"]),
        "network_front_back": silent_confusion if record["silent"] else float(errors["front_back"]),
        "network_confidence": 0.0 if record["silent"] else float(confidences[0]),
    }
