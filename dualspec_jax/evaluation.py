"""Measure systems clip by clip: real recordings, the stages of the model, generated clips, other systems' files."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from dualspec_jax.bundle import Bundle
from dualspec_jax.clap_metrics import ClapJudge
from dualspec_jax.clip_judge import ClipJudge
from dualspec_jax.generate import Generator
from dualspec_jax.prompt_set import PROMPT_SET_VERSION, Prompt
from dualspec_jax.prompt_set import to_json as prompts_to_json
from dualspec_jax.prompts import Request
from dualspec_jax.real_scenes import STAGES, RealScene, make_stages
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.scene import render
from dualspec_jax.wav import peak_gain, read_wav, write_atomically, write_wav
from dualspec_jax.wav_folder import WavClip, read_stereo


def _batches(items: Sequence, size: int, name: str) -> Iterator[Sequence]:
    """Yield batches, with a progress bar that counts items; none for no items."""
    with tqdm(total=len(items), unit="clip", desc=name, disable=not items) as bar:
        for first in range(0, len(items), size):
            yield items[first : first + size]
            bar.update(len(items[first : first + size]))


def measure_real(
    bundle: Bundle,
    judge: ClipJudge,
    scenes: Sequence[RealScene],
    *,
    real: bool,
    vocoder: str | None,
    seed: int,
    rooms: bool = False,
) -> dict[str, list[dict]]:
    """Return the records of `real` and of the STAGES, {system: one per scene}.

    Args:
      real: whether to return the records of the recordings themselves.
      vocoder: of the stages; None leaves them out.
      rooms: whether each scene is in a random room.
    """
    audio = bundle.config.audio
    stages = None if vocoder is None else make_stages(bundle, vocoder)
    names = ("real",) * real + (STAGES if stages else ())
    systems: dict[str, list[dict]] = {name: [] for name in names}
    for batch in _batches(scenes, judge.batch_size, ", ".join(names)):
        waveforms = np.stack([scene.render(judge.hrtf, seed if rooms else None) for scene in batch])
        azimuths, labels = [s.azimuth_deg for s in batch], [s.label for s in batch]
        originals = judge(waveforms, azimuths, labels)
        outputs = {"real": (waveforms, {})}
        if stages is not None:
            fill = [*range(len(batch)), *[0] * (judge.batch_size - len(batch))]  # one shape, one compilation
            response = judge.hrtf.spectrum(np.array(azimuths), audio.n_fft, audio.n_bins)
            keys = jax.vmap(jax.random.key)(np.uint32([seed + batch[i].index for i in fill]))
            outputs |= jax.device_get(stages(waveforms[fill], response[fill], keys))
        for name in names:
            rebuilt, errors = outputs[name]
            records = originals if name == "real" else judge(rebuilt[: len(batch)], azimuths, labels)
            for i, (scene, original, record) in enumerate(zip(batch, originals, records, strict=True)):
                identity = {"unit": scene.file, "index": scene.index, "file": scene.file}
                shift = {}
                if name != "real":
                    shift = {field: float(value[i]) for field, value in errors.items()}
                    shift["itd_shift_us"] = abs(record["itd_us"] - original["itd_us"])
                    shift["ild_shift_db"] = abs(record["ild_db"] - original["ild_db"])
                systems[name].append(identity | record | shift)
    return systems


class ClipStore:
    """Generate the clips of a prompt set once, and keep them as WAV files.

    The folder <root>/<key> is named after everything that changes a clip, so a rerun makes only what is missing.
    """

    def __init__(self, root: Path, generator: Generator, seed: int, prompt_set: str = "ten", text_only: bool = False):
        self.generator, self.seed, self.text_only = generator, seed, text_only
        self.settings = generator.settings
        key = {
            "bundle_sha256": generator.bundle.digest,
            "prompt_set_version": PROMPT_SET_VERSION,
            "prompt_set_sha256": prompts_to_json(prompt_set)["sha256"],
            "seed": seed,
            "text_only": text_only,
            **self.settings,
        }
        text = json.dumps(key, indent=1, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:12]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(f"out = {str(self.folder)!r}: cannot be made ({e.strerror or e})") from e
        write_atomically(self.folder / "settings.json", lambda f: f.write(text.encode()))

    def path(self, prompt: Prompt) -> Path:
        """Return where the clip of a prompt lies, or will lie."""
        row = "numeric" if prompt.style == "numeric" else "words"
        label = prompt.label.replace(" ", "-")
        return self.folder / f"{row}_{prompt.index:03d}_{label}_{prompt.azimuth_deg:03.0f}_{prompt.style}.wav"

    def generate(self, prompts: Sequence[Prompt], name: str) -> float:
        """Make the clips that are not there yet; return the seconds per clip, also of earlier runs, less compilation.

        The numeric azimuth is given to the model for prompts of style 'numeric' only.
        """
        timing_path = self.folder / f"timing_{name}.json"
        timing = json.loads(timing_path.read_text()) if timing_path.is_file() else {"clips": 0, "seconds": 0.0}
        missing = [p for p in prompts if not self.path(p).is_file()]
        if not missing:
            return timing["seconds"] / timing["clips"] if timing["clips"] else float("nan")
        self.generator.compile()
        rate = self.generator.bundle.config.audio.sample_rate
        requests = [
            Request(
                p.text,
                self.seed + p.index,
                p.azimuth_deg if p.style == "numeric" else None,
                text_only=self.text_only,
            )
            for p in missing
        ]
        start, clips = time.perf_counter(), zip(missing, self.generator(requests), strict=True)
        for prompt, waveform in tqdm(clips, f"generate {name}", len(missing), unit="clip"):
            write_wav(self.path(prompt), waveform * np.float32(peak_gain(waveform)), rate)
            now = time.perf_counter()
            timing = {"clips": timing["clips"] + 1, "seconds": timing["seconds"] + now - start}
            start, text = now, json.dumps(timing)
            write_atomically(timing_path, lambda f, text=text: f.write(text.encode()))
        return timing["seconds"] / timing["clips"]


def measure_generated(judge: ClipJudge, store: ClipStore, prompts: Sequence[Prompt], name: str) -> list[dict]:
    """Return one record per prompt, of the clips in the store."""
    records = []
    for batch in _batches(prompts, judge.batch_size, f"measure {name}"):
        waveforms = np.stack([read_wav(store.path(p))[0] for p in batch])
        found = judge(waveforms, [p.azimuth_deg for p in batch], [p.label for p in batch])
        for prompt, record in zip(batch, found, strict=True):
            wav = {"wav": f"{store.folder.name}/{store.path(prompt).name}"}
            records.append({"unit": prompt.index} | wav | asdict(prompt) | record)
    return records


def add_clap_scores(clap: ClapJudge, store: ClipStore, prompts: Sequence[Prompt], records: list[dict]) -> None:
    """Add `clap`, the cosine of clip and prompt, to the records of `measure_generated`."""
    rate = store.generator.bundle.config.audio.sample_rate
    size = store.generator.batch_size
    for first, batch in enumerate(_batches(prompts, size, "measure CLAP")):
        scores = clap.scores(np.stack([read_wav(store.path(p))[0] for p in batch]), rate, [p.text for p in batch])
        for record, score in zip(records[first * size :], scores, strict=False):
            record["clap"] = float(score)


def place_anew(waveform: np.ndarray, azimuth_deg: float, hrtf: Hrtf) -> np.ndarray:
    """Return the content of a two-ear clip [N, 2] placed by HRTF convolution: the cascade of text-to-mono and renderer.

    The content is the louder ear: a sum of both would be a comb filter.
    """
    ear = int(np.argmax(np.sum(np.square(waveform, dtype=np.float64), axis=0)))
    placed = render(waveform[:, ear], azimuth_deg, hrtf)
    return placed * np.float32(peak_gain(placed))


def measure_cascade(judge: ClipJudge, store: ClipStore, prompts: Sequence[Prompt]) -> list[dict]:
    """Return one record per prompt, of the clips in the store made mono and placed anew at the asked azimuth."""
    records = []
    for batch in _batches(prompts, judge.batch_size, "measure cascade"):
        clips = [place_anew(read_wav(store.path(p))[0], p.azimuth_deg, judge.hrtf) for p in batch]
        found = judge(np.stack(clips), [p.azimuth_deg for p in batch], [p.label for p in batch])
        records += [{"unit": p.index} | asdict(p) | record for p, record in zip(batch, found, strict=True)]
    return records


def measure_folder(judge: ClipJudge, clips: Sequence[WavClip]) -> list[dict]:
    """Return one record per file.

    Raises:
      ValueError: a file that is not stereo or cannot be read.
    """
    records, audio = [], judge.audio
    for batch in _batches(clips, judge.batch_size, "measure files"):
        waveforms = np.stack([read_stereo(c.path, audio.sample_rate, audio.n_samples) for c in batch])
        found = judge(waveforms, [c.azimuth_deg for c in batch], [c.label for c in batch])
        records += [{"unit": c.index, "wav": c.path.name} | r for c, r in zip(batch, found, strict=True)]
    return records
