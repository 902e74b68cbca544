"""Prompt -> waveform: tokens, text features, latents, spectrograms, audio."""

import copy
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from dualspec_jax import metrics
from dualspec_jax.bundle import Bundle
from dualspec_jax.config import MAX_DIRECTION_NOISE, MAX_EVENT_GUIDANCE, MAX_SPACING, MAX_TRIES, SOLVERS, VOCODERS
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import Rows, solver_rows, trailing_timesteps
from dualspec_jax.prompts import Request, complete
from dualspec_jax.sharding import make_mesh, replicated, split_batch
from dualspec_jax.stages import make_stages, readers, samplers
from dualspec_jax.vocoders import default_vocoder, vocoder_params

SETTINGS = (
    "steps", "solver", "spacing", "guidance_mel", "guidance_stft", "guidance_interval", "guidance_rescale", "eta",
    "direction_noise", "vocoder", "reword", "event_guidance", "tries", "accept",
)  # fmt: skip
NEXT_TRY = 0x9E3779B9  # added to a seed, modulo 2**32, for the next try: far from the seeds of neighbouring clips


class Generator:
    """Make clips with one bundle: text encoder, sampler, decoders and vocoder, each compiled once per shape.

    Clips are made in batches of exactly `batch_size`, the last one filled up, each with keys of its own seed: so the
    same request gives the same samples whatever it is made together with. A batch is split over as many devices as
    divide it.

    Args:
      steps: evaluations of the denoiser, each of three batches together: words and azimuth, words alone, neither.
      solver: one of config.SOLVERS.
      spacing: of the steps over the noise levels, see `solvers.trailing_timesteps`.
      guidance_mel, guidance_stft: scales of the two branches; 1 is no guidance.
      guidance_interval: noise levels that are guided, from 0 (clean) to 1 (pure noise); elsewhere a step costs less.
      guidance_rescale: 0 to 1, see `diffusion.guidance.guide`.
      direction_noise: how wrong the generated direction is taken to be where the request has an angle, see
        `diffusion.direction_prior.steer`; 0 leaves it as generated. The bundle must have a direction prior.
      eta: sampling noise of solver ddim, 0 to 1; above 0 it chooses that solver where none is named.
      vocoder: one of config.VOCODERS; see `vocoders.default_vocoder`.
      reword: whether new words for a known sound become its label, see `prompts.complete`.
      event_guidance: how strongly the bundle's event guide pulls the content towards the sound its words name, see
        `diffusion.guidance.guide_to_event`; 0 is none.
      tries: at most so many at a clip that comes out silent (peak below metrics.SILENT_DBFS) or as another sound, each
        from other noise (`NEXT_TRY`); the best is kept. 1 leaves clips as they come.
      accept: how probable it must be, by the bundle's listener, that a clip is the sound its words name, for it to be
        kept at once; see `models.event_network.log_agreement`. 0 tries again for silence only.
      batch_size: clips made at once. For all but this, None takes the bundle's default.

    Attributes:
      seconds: spent in each stage so far, and in compiling.

    Raises:
      ValueError: naming the field, its value and the rule.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        steps: int | None = None,
        solver: str | None = None,
        spacing: float | None = None,
        guidance_mel: float | None = None,
        guidance_stft: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        eta: float | None = None,
        direction_noise: float | None = None,
        vocoder: str | None = None,
        reword: bool | None = None,
        event_guidance: float | None = None,
        tries: int | None = None,
        accept: float | None = None,
        batch_size: int = 1,
    ):
        s = bundle.config.sample
        self.bundle, self.batch_size = bundle, batch_size
        self.steps, self.eta = s.steps, s.eta
        self.solver, self.guidance_interval = bundle.config.sampler.solver, bundle.config.sampler.guidance_interval
        self.spacing = bundle.config.sampler.spacing
        self.guidance_rescale = bundle.config.sampler.guidance_rescale
        self.guidance_mel, self.guidance_stft = s.guidance_mel, s.guidance_stft
        self.direction_noise = bundle.config.sampler.direction_noise if "direction" in bundle.params else 0.0
        self.vocoder = default_vocoder(bundle)
        self.reword = bundle.config.sampler.reword
        self.tries = bundle.config.sampler.tries
        self.accept = bundle.config.sampler.accept if "listener" in bundle.params else 0.0
        self.event_guidance = bundle.config.sampler.event_guidance if "event_guide" in bundle.params else 0.0
        self.seconds: Counter[str] = Counter()
        self._functions = make_stages(bundle)
        self._compiled: dict[tuple, tuple] = {}
        self._params: dict[int, dict] = {}
        self._set(
            steps=steps,
            solver=solver,
            spacing=spacing,
            guidance_mel=guidance_mel,
            guidance_stft=guidance_stft,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            eta=eta,
            direction_noise=direction_noise,
            vocoder=vocoder,
            reword=reword,
            event_guidance=event_guidance,
            tries=tries,
            accept=accept,
        )

    def with_settings(self, *, batch_size: int | None = None, **settings) -> "Generator":
        """Return a generator with other settings (None keeps one) that shares parameters and compiled programs.

        Raises:
          ValueError: as the constructor.
          TypeError: a setting that does not exist.
        """
        other = copy.copy(self)
        if batch_size is not None:
            other.batch_size = batch_size
        other._set(**settings)
        return other

    @property
    def settings(self) -> dict[str, object]:
        """The settings that change a clip, by name; JSON gives them back equal."""
        return {name: getattr(self, name) for name in SETTINGS} | {"guidance_interval": list(self.guidance_interval)}

    def _set(self, **settings) -> None:
        for name, value in settings.items():
            if name not in SETTINGS:
                raise TypeError(f"no setting {name!r}: there are {', '.join(SETTINGS)}")
            if value is not None:
                setattr(self, name, value)
        if settings.get("eta") and not settings.get("solver"):
            self.solver = "ddim"
        d = self.bundle.config.diffusion
        for field, value, low, high in (
            ("steps", self.steps, 1, d.num_steps),
            ("spacing", self.spacing, 1.0, MAX_SPACING),
            ("guidance_mel", self.guidance_mel, 0.0, 100.0),
            ("guidance_stft", self.guidance_stft, 0.0, 100.0),
            ("guidance_rescale", self.guidance_rescale, 0.0, 1.0),
            ("eta", self.eta, 0.0, 1.0),
            ("direction_noise", self.direction_noise, 0.0, MAX_DIRECTION_NOISE),
            ("event_guidance", self.event_guidance, 0.0, MAX_EVENT_GUIDANCE),
            ("tries", self.tries, 1, MAX_TRIES),
            ("accept", self.accept, 0.0, 1.0),
            ("batch_size", self.batch_size, 1, 4096),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field} = {value}: must be in [{low}, {high}]")
        for field, value, names in (("solver", self.solver, SOLVERS), ("vocoder", self.vocoder, VOCODERS)):
            if value not in names:
                raise ValueError(f"{field} = {value!r}: must be one of {', '.join(names)}")
        for field, part, name in (
            ("direction_noise", "direction", "direction prior"),
            ("accept", "listener", "listener"),
            ("event_guidance", "event_guide", "event guide"),
        ):
            if getattr(self, field) and part not in self.bundle.params:
                where = f"the bundle {str(self.bundle.path)!r} has no {name}"
                raise ValueError(f"{field} = {getattr(self, field)}: {where}, only 0 can be asked for")
        vocoder_params(self.bundle, self.vocoder)
        low, high = self.guidance_interval = tuple(float(x) for x in self.guidance_interval)
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"guidance_interval = ({low}, {high}): must rise and lie in [0, 1]")
        alpha_bar = make_alpha_bar(d.schedule, d.num_steps)
        timesteps = trailing_timesteps(d.num_steps, self.steps, self.spacing)
        self._rows = solver_rows(alpha_bar, timesteps, self.solver, self.eta)

    def compile(self) -> None:
        """Compile now (or load from the compile cache) rather than at the first clip."""
        params, inputs, control = self._arguments([Request("")] * self.batch_size)
        condition, carry, events = self._prepare("encode", readers(params), inputs)[1]
        given = samplers(params), condition, carry, self._rows, inputs["seed"], events
        carry = self._prepare(self._sampler, *given, *control)[1]
        mel, features = self._prepare("decode", params, *self._placed(carry, condition))[1]
        waveforms = self._prepare(self.vocoder, params.get("vocoder", {}), mel, features, inputs["seed"])[1]
        if self._ranked:
            self._prepare("rank", params["listener"], waveforms, events)

    def __call__(
        self, requests: Sequence[Request], callback: Callable[[int, int], None] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield one waveform float32 [N, 2] per request, in order.

        Clips that are made again fill batches together with those that are still to be made.

        Args:
          callback: called as callback(steps done, steps in all) after each step, those of all batches counted; there
            become more of them where clips are made again. An exception in it stops the work. The steps then run one
            by one, in a program of their own.

        Raises:
          ValueError: the device's memory does not hold a batch.
        """
        waiting = deque(enumerate(requests))
        tries, best, again = Counter(), {}, set()
        due = batches = 0
        while waiting:
            batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
            total = (batches + 1 - (-len(waiting) // self.batch_size)) * self.steps
            report = callback and (lambda n, first=batches * self.steps, total=total: callback(first + n, total))
            filled = [request for _, request in batch] + [batch[-1][1]] * (self.batch_size - len(batch))
            try:
                waveforms, ranks = self._make(filled, report)
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                advice = f"try {self.batch_size // 2}" if self.batch_size > 1 else "try JAX_PLATFORMS=cpu"
                raise ValueError(f"batch_size = {self.batch_size}: the device's memory is too small; {advice}") from e
            batches += 1
            for (i, request), waveform, rank in reversed(list(zip(batch, waveforms, ranks, strict=False))):
                tries[i] += 1
                if i not in best or rank > best[i][0]:
                    best[i] = rank, waveform
                again.discard(i)
                if rank < self.accept and tries[i] < self.tries:
                    again.add(i)
                    waiting.appendleft((i, replace(request, seed=(request.seed + NEXT_TRY) % 2**32)))
            while due in best and due not in again:
                yield best.pop(due)[1]
                due += 1

    def _make(self, requests: Sequence[Request], report: Callable[[int], None] | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the waveforms of a batch and how good each is: how probably the sound asked for, below 0 if silent."""
        params, inputs, control = self._arguments(requests)
        condition, carry, events = self._run("encode", readers(params), inputs)
        parts = [self._rows]
        if report:
            parts = [Rows(*(x[i : i + 1] for x in self._rows)) for i in range(self.steps)]
        for i, rows in enumerate(parts):
            given = samplers(params), condition, carry, rows, inputs["seed"], events
            carry = self._run(self._sampler, *given, *control)
            if report:
                report(i + 1)
        mel, features = self._run("decode", params, *self._placed(carry, condition))
        waveforms = self._run(self.vocoder, params.get("vocoder", {}), mel, features, inputs["seed"])
        ranks = np.ones(len(requests))
        if self._ranked:
            ranks = np.asarray(self._run("rank", params["listener"], waveforms, events))
        waveforms = np.asarray(waveforms)
        silent = np.array([metrics.peak_dbfs(w) < metrics.SILENT_DBFS for w in waveforms])
        return waveforms, np.where(silent, -1.0, ranks)

    def _placed(self, carry: tuple, conditions: tuple) -> tuple:
        """Return what the decoders need: latents, azimuths, which of these are known, how far they are trusted."""
        c = conditions[0]
        return carry[0], c["azimuth_deg"], c["has_azimuth"], np.float32(self.direction_noise)

    @property
    def _ranked(self) -> bool:
        return self.accept > 0.0 and self.tries > 1

    @property
    def _sampler(self) -> str:
        return "sample" if self.guidance_interval == (0.0, 1.0) else "sample_in_interval"

    def _arguments(self, requests: Sequence[Request]) -> tuple[dict, dict[str, np.ndarray], tuple]:
        """Return parameters on the devices, inputs of a batch, and the sampler's scale, guided steps, rescale, pull."""
        config = self.bundle.config
        mesh = make_mesh(self.batch_size)
        if mesh.size not in self._params:
            self._params[mesh.size] = jax.device_put(self.bundle.params, replicated(mesh) if mesh.size > 1 else None)
        sounds = self.bundle.labels if self.reword else None
        requests = [complete(request, sounds) for request in requests]
        ids, mask = self.bundle.tokenizer.encode_batch([r.prompt for r in requests], config.text.max_length)
        negative_ids, negative_mask = self.bundle.tokenizer.encode_batch(
            [r.negative_prompt for r in requests], config.text.max_length
        )
        inputs = {
            "ids": ids,
            "mask": mask,
            "negative_ids": negative_ids,
            "negative_mask": negative_mask,
            "azimuth_deg": np.float32([r.azimuth_deg or 0.0 for r in requests]),
            "has_azimuth": np.array([r.azimuth_deg is not None for r in requests]),
            "text_only": np.array([r.text_only for r in requests]),
            "seed": np.uint32([r.seed for r in requests]),
        }
        channels = [config.mel_vae.latent_channels, config.stft_vae.latent_channels]
        scale = np.repeat(np.float32([self.guidance_mel, self.guidance_stft]), channels)
        guided_steps = np.float32(self.guidance_interval) * config.diffusion.num_steps
        control = scale, guided_steps, np.float32(self.guidance_rescale), np.float32(self.event_guidance)
        return self._params[mesh.size], inputs, control

    def _prepare(self, name: str, *args) -> tuple:
        """Return (compiled program, shapes of its results) for these arguments or their shapes."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        key = (name, self.batch_size, *(x.shape for x in jax.tree.leaves(shapes)))
        if key not in self._compiled:
            start = time.perf_counter()
            function, batched = self._functions[name]
            lowered = split_batch(function, self.batch_size, batched).lower(*shapes)
            results = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)
            self._compiled[key] = lowered.compile(), results
            self.seconds["compile"] += time.perf_counter() - start
        return self._compiled[key]

    def _run(self, name: str, *args):
        compiled, _ = self._prepare(name, *args)
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        self.seconds["vocode" if name in VOCODERS else name.partition("_")[0]] += time.perf_counter() - start
        return result
