"""Sound from a prompt in Python, in the manner of diffusers: `DualSpecPipeline.from_pretrained()(prompt)`."""

import base64
import functools
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualspec_jax import __version__, compile_cache
from dualspec_jax.bundle import Bundle, load_bundle
from dualspec_jax.config import branch_guidance
from dualspec_jax.event_metrics import load_classifier
from dualspec_jax.generate import Generator
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.prompts import MAX_CHARACTERS, Request, Scene, read_scene, slug
from dualspec_jax.self_check import SelfCheck, badness, measure_lufs
from dualspec_jax.spatial.hrtf import load_hrtf
from dualspec_jax.wav import PEAK, encode_audio, peak_gain, suffix_of, write_atomically, write_audio

MAX_BATCH = 8  # clips made at once where nothing else is asked for
MIN_DURATION_S = 0.1
FADE_S = 0.01  # at the end of a clip that is cut
_NEXT_SEED = 0x9E3779B1  # between the candidates of best-of, so that they miss the seeds of other clips


@dataclass(frozen=True)
class Clip:
    """One clip and all that is known of it; in a notebook it shows itself as player and spectrogram.

    Attributes:
      waveform: float32 [N, 2] in [-1, 1], left and right ear.
      scene: what was asked for.
      measured: what came out, see `SelfCheck`; `scaled_down` tells that it came out louder than `wav.PEAK`.
      record: what `save` writes as JSON.
      mel: log-mel of both ears [T, M, 2], nepers.
    """

    waveform: np.ndarray
    sample_rate: int
    scene: Scene
    measured: dict[str, Any]
    record: dict[str, Any]
    mel: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        """File name without suffix: prompt and seed."""
        return f"{slug(self.scene.prompt)}_seed{self.record['seed']}"

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the audio file, and the record beside it as JSON; return the audio file's path.

        Args:
          format: one of wav.FORMATS; None takes that of the suffix, WAV with 16 bits unless it is .flac.

        Raises:
          ValueError: format and suffix differ, or a file cannot be written; then neither is there.
        """
        path = Path(path)
        is_flac = path.suffix.lower() == ".flac"
        format = format or ("flac" if is_flac else "wav")
        if is_flac != (format == "flac"):
            raise ValueError(f"path = {str(path)!r}: format {format} needs the suffix {suffix_of(format)}")
        text = json.dumps(self.record, indent=1) + "\n"
        write_audio(path, self.waveform, self.sample_rate, format)
        try:
            write_atomically(path.with_suffix(".json"), lambda f: f.write(text.encode()))
        except BaseException:
            path.unlink()  # a sound without its record is half a result
            raise
        return path

    def spectrogram(self) -> np.ndarray:
        """Return a picture of both ears' log-mel, uint8 [H, W, 3], left ear on top."""
        return spectrogram_image(self.mel)

    def _repr_html_(self) -> str:
        from PIL import Image

        picture = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self.spectrogram())).save(picture, format="PNG")
        data = lambda kind, content: f"data:{kind};base64,{base64.b64encode(content).decode()}"
        sound = data("audio/wav", encode_audio(self.waveform, self.sample_rate))
        asked, got = self.scene.azimuth_deg, self.measured["azimuth_deg"]
        degrees = lambda x: "free" if x is None else f"{x:.0f}&deg;"
        return (
            f"<figure><audio controls src='{sound}'></audio><br><img src='{data('image/png', picture.getvalue())}'>"
            f"<figcaption>{html.escape(self.scene.prompt)} (seed {self.record['seed']}): azimuth asked "
            f"{degrees(asked)}, measured {degrees(got)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class DualSpecOutput:
    """The clips of a call, in the order of the prompts, those of one prompt together."""

    clips: tuple[Clip, ...]

    @property
    def waveforms(self) -> np.ndarray:
        """All waveforms, float32 [B, N, 2]."""
        return np.stack([clip.waveform for clip in self.clips])

    @property
    def sample_rate(self) -> int:
        return self.clips[0].sample_rate

    @property
    def scenes(self) -> list[Scene]:
        return [clip.scene for clip in self.clips]

    @property
    def measured(self) -> list[dict[str, Any]]:
        return [clip.measured for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    def save(self, path: str | Path, format: str | None = None) -> list[Path]:
        """Write each clip and its record; return the paths of the audio files.

        Args:
          path: of the file if it ends in .wav or .flac, else a folder, made where it is missing.
          format: see `Clip.save`.

        Raises:
          ValueError: several clips for one file, or a file that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() in (".wav", ".flac"):
            if len(self) > 1:
                raise ValueError(f"path = {str(path)!r}: {len(self)} clips need a folder, not a file name")
            return [self[0].save(path, format)]
        path.mkdir(parents=True, exist_ok=True)
        return [clip.save(path / (clip.name + suffix_of(format)), format) for clip in self.clips]

    def _repr_html_(self) -> str:
        return "".join(clip._repr_html_() for clip in self.clips)


class DualSpecPipeline:
    """Make two-ear clips from prompts.

    Args:
      hrtf: file whose templates measure the clips' azimuth; None takes the trained
        localiser of the package.
    """

    def __init__(self, bundle: Bundle, hrtf: str | Path | None = None):
        self.bundle = bundle
        self.hrtf_path = hrtf
        self.generator = Generator(bundle)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, *, hrtf: str | Path | None = None, cache: bool = True
    ) -> "DualSpecPipeline":
        """Load a bundle.

        Args:
          name_or_path: a bundle's folder; None or "embedded" is the one in the package.
          hrtf: see the constructor.
          cache: keep compiled programs on disk, see `compile_cache`.

        Raises:
          ValueError: no bundle there, or a broken one.
        """
        if cache:
            compile_cache.enable()
        return cls(load_bundle(None if name_or_path == "embedded" else name_or_path), hrtf)

    @property
    def labels(self) -> tuple[str, ...]:
        """The sounds the model was trained on."""
        return self.bundle.labels

    @functools.cached_property
    def self_check(self) -> SelfCheck:
        """What measures the clips: direction, level and event."""
        audio = self.bundle.config.audio
        hrtf = None if self.hrtf_path is None else load_hrtf(self.hrtf_path, audio.sample_rate)
        return SelfCheck(audio, hrtf, load_classifier())

    def __call__(
        self,
        prompt: str | Sequence[str],
        azimuth_deg: float | Sequence[float | None] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        num_waveforms_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        duration: float | None = None,
        callback: Callable[[int, int], None] | None = None,
        *,
        solver: str | None = None,
        spacing: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        eta: float | None = None,
        direction_noise: float | None = None,
        vocoder: str | None = None,
        reword: bool | None = None,
        event_guidance: float | None = None,
        tries: int | None = None,
        accept: float | None = None,
        best_of: int = 1,
        normalise: float | None = None,
        batch_size: int | None = None,
    ) -> DualSpecOutput:
        """Make clips. The same prompt, seed and settings give the same clip, whatever it is made together with.

        Args:
          prompt: what to hear and where, one or several.
          azimuth_deg: degrees, 0 front, 90 left, in (-360, 360]; None leaves the direction to the words. One for all
            prompts or one each, as are negative_prompt (what to move away from) and seed.
          num_inference_steps: evaluations of the denoiser.
          guidance_scale: one number or (Mel, STFT); see `config.branch_guidance`.
          num_waveforms_per_prompt: clip j of prompt i gets seed + i * this + j, or seed[i] + j.
          duration: seconds, at most what the model makes (5.12); a shorter clip is cut, with a fade of 10 ms.
          callback: see `Generator.__call__`.
          solver, spacing, guidance_interval, eta, direction_noise, vocoder, reword, event_guidance, tries, accept: see
            `Generator`.
          best_of: candidates made for each clip, of which the one with the least `badness` is kept.
          normalise: loudness in LUFS, such as -23; less where the peak would pass full scale.
          batch_size: clips made at once; None makes all at once, up to 8.

        Raises:
          ValueError: naming the argument, its value and the rule.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt = []: must be a prompt or several")
        if num_waveforms_per_prompt < 1:
            raise ValueError(f"num_waveforms_per_prompt = {num_waveforms_per_prompt}: must be at least 1")
        count, n = len(prompts), num_waveforms_per_prompt
        azimuths = _one_each("azimuth_deg", azimuth_deg, count)
        negatives = _one_each("negative_prompt", negative_prompt, count)
        seeds = [seed + i * n for i in range(count)] if np.ndim(seed) == 0 else _one_each("seed", seed, count)
        requests = [
            Request(prompts[i], seeds[i] + j, azimuths[i], negatives[i] or "") for i in range(count) for j in range(n)
        ]
        maker = self.maker(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            duration=duration,
            solver=solver,
            spacing=spacing,
            guidance_interval=guidance_interval,
            eta=eta,
            direction_noise=direction_noise,
            vocoder=vocoder,
            reword=reword,
            event_guidance=event_guidance,
            tries=tries,
            accept=accept,
            best_of=best_of,
            normalise=normalise,
            batch_size=min(len(requests) * best_of, MAX_BATCH) if batch_size is None else batch_size,
        )
        return DualSpecOutput(tuple(maker(requests, callback)))

    def maker(
        self,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        duration: float | None = None,
        best_of: int = 1,
        normalise: float | None = None,
        batch_size: int = 1,
        **settings,
    ) -> "ClipMaker":
        """Return what makes clips with fixed settings, those of `__call__`, from one list of requests after another.

        Raises:
          ValueError: naming the setting, its value and the rule.
        """
        audio = self.bundle.config.audio
        longest = audio.n_samples / audio.sample_rate
        duration = longest if duration is None else float(duration)
        shortest = min(MIN_DURATION_S, longest)
        if not shortest <= duration <= longest:
            raise ValueError(f"duration = {duration:g}: must be in [{shortest:g}, {longest:g}] s, what the model makes")
        if best_of < 1:
            raise ValueError(f"best_of = {best_of}: must be at least 1")
        if normalise is not None and not -70.0 <= normalise <= 0.0:
            raise ValueError(f"normalise = {normalise}: must be in [-70, 0] LUFS")
        mel, stft = (None, None) if guidance_scale is None else branch_guidance(guidance_scale)
        generator = self.generator.with_settings(
            steps=num_inference_steps, guidance_mel=mel, guidance_stft=stft, batch_size=batch_size, **settings
        )
        return ClipMaker(self, generator, duration, best_of, normalise)


@dataclass(frozen=True)
class ClipMaker:
    """Make clips with fixed settings; `DualSpecPipeline.maker` checks them."""

    pipeline: DualSpecPipeline
    generator: Generator
    duration: float
    best_of: int
    normalise: float | None

    def identity(self, request: Request) -> dict[str, Any]:
        """Return all that decides what a request's clip is, as the record has it."""
        return {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "azimuth_deg": request.azimuth_deg,
            "seed": request.seed,
            **self.generator.settings,
            "duration_s": self.duration,
            "normalise_lufs": self.normalise,
            "best_of": self.best_of,
            "bundle_sha256": self.pipeline.bundle.digest,
        }

    def check(self, request: Request) -> tuple[Request, Scene]:
        """Return the request with its azimuth in [0, 360), and its scene.

        Raises:
          ValueError: a prompt, azimuth or seed out of range, or best-of with nothing to rank by.
        """
        scene = read_scene(request.prompt, request.azimuth_deg)
        if len(request.prompt) > MAX_CHARACTERS:
            raise ValueError(f"prompt of {len(request.prompt)} characters: must have at most {MAX_CHARACTERS}")
        if not 0 <= request.seed < 2**32:
            raise ValueError(f"seed = {request.seed}: must be in [0, 2^32)")
        if self.best_of > 1 and not self.pipeline.self_check.can_rank(scene):
            raise ValueError(f"best_of = {self.best_of}: {request.prompt[:80]!r} names no direction to rank clips by")
        return (request if request.azimuth_deg is None else replace(request, azimuth_deg=scene.azimuth_deg)), scene

    def __call__(self, requests: Sequence[Request], callback: Callable[[int, int], None] | None = None) -> list[Clip]:
        """Return one clip per request, in order.

        Raises:
          ValueError: see `check`; the device's memory does not hold a batch.
        """
        return list(self.iterate(requests, callback))

    def iterate(
        self, requests: Sequence[Request], callback: Callable[[int, int], None] | None = None
    ) -> Iterator[Clip]:
        """Yield one clip per request, in order, as they are made; see `__call__`."""
        checked = [self.check(request) for request in requests]
        candidates = [
            replace(request, seed=(request.seed + j * _NEXT_SEED) % 2**32)
            for request, _ in checked
            for j in range(self.best_of)
        ]
        waveforms = self.generator(candidates, callback)
        for i, (request, scene) in enumerate(checked):
            mine = candidates[i * self.best_of : (i + 1) * self.best_of]
            made = [self._finish(request, candidate, scene, next(waveforms)) for candidate in mine]
            yield min(made, key=lambda clip: badness(clip.measured))

    def _finish(self, request: Request, candidate: Request, scene: Scene, waveform: np.ndarray) -> Clip:
        """Cut, normalise and measure a generated waveform."""
        bundle, audio = self.pipeline.bundle, self.pipeline.bundle.config.audio
        n = round(self.duration * audio.sample_rate)
        if n < len(waveform):
            waveform = waveform[:n].copy()
            fade = min(round(FADE_S * audio.sample_rate), n)
            waveform[-fade:] *= (0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / fade))[:, None].astype(np.float32)
        gain = within = peak_gain(waveform)
        if self.normalise is not None:
            lufs = measure_lufs(waveform, audio.sample_rate)
            if np.isfinite(lufs):
                gain = min(10.0 ** ((self.normalise - lufs) / 20.0), PEAK / float(np.abs(waveform).max()))
        waveform = waveform * np.float32(gain)
        check = self.pipeline.self_check
        measured, mel = check(waveform, scene)
        measured["scaled_down"] = within < 1.0
        record = self.identity(request) | {
            "made_with_seed": candidate.seed,
            "parsed_azimuth_deg": scene.parsed_azimuth_deg,
            "parsed_style": scene.style,
            "measured": measured,
            "measured_with": check.measured_with,
            "gain_db": round(20.0 * float(np.log10(gain)), 2),
            "sample_rate": audio.sample_rate,
            "bundle": str(bundle.path),
            "version": __version__,
        }
        return Clip(waveform, audio.sample_rate, scene, measured, record, mel)


def _one_each(name: str, value: Any, count: int) -> list:
    """Repeat a single value, or check that there is one for each prompt."""
    if value is None or isinstance(value, str) or np.ndim(value) == 0:
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} of {len(value)} values: must be one, or one for each of the {count} prompts")
    return list(value)
