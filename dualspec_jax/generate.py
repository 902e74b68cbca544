"""Prompt -> waveform: tokens, text features, latents, spectrograms, audio."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dualspec_jax import networks
from dualspec_jax.bundle import Bundle
from dualspec_jax.diffusion.ddim import ddim_sample
from dualspec_jax.diffusion.guidance import guide
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.ops.binaural import spatial_filter
from dualspec_jax.ops.griffin_lim import griffin_lim
from dualspec_jax.ops.mel import mel_filterbank, mel_to_magnitude, sum_ears
from dualspec_jax.ops.stft import istft
from dualspec_jax.single_branch import branch_of, make_single_synthesis

VOCODERS = ("griffin_lim", "griffin_lim_stft")


@dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
      azimuth_deg: numeric azimuth for the azimuth token, degrees in [0, 360); None leaves the direction to the text.
      negative_prompt: what guidance moves away from; "" is the plain null condition.
    """

    prompt: str
    seed: int = 0
    azimuth_deg: float | None = None
    negative_prompt: str = ""


def make_vocoder(audio, name: str, iters: int, momentum: float) -> Callable:
    """Return (mel [B,T,M,2], features [B,T,F,4], keys [B]) -> mono content, complex [B,T,F].

    "griffin_lim" takes the magnitudes from the Mel branch alone; "griffin_lim_stft" starts their search at the STFT
    branch's magnitudes, which helps where that branch is exact and costs nothing.

    Raises:
      ValueError: unknown name.
    """
    if name not in VOCODERS:
        raise ValueError(f"vocoder = {name!r}: must be one of {', '.join(VOCODERS)}")
    filters = mel_filterbank(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax, audio.n_bins)

    def vocode(mel, features, keys):
        initial = None
        if name == "griffin_lim_stft":
            initial = jnp.exp(0.5 * jax.nn.logsumexp(2.0 * features[..., :2], axis=-1))
        magnitude = mel_to_magnitude(sum_ears(mel), filters, initial=initial)
        size = {"n_samples": audio.n_samples, "n_fft": audio.n_fft, "hop_length": audio.hop_length}
        return griffin_lim(magnitude, keys, iters=iters, momentum=momentum, **size)

    return vocode


def make_synthesis(config, vocoder: str) -> Callable:
    """Return (mel [B,T,M,2], features [B,T,F,4], keys [B]) -> waveform [B,N,2], DESIGN.md section 3.

    A model of one branch (an ablation) has its own synthesis, without a choice of vocoder.

    Raises:
      ValueError: unknown vocoder.
    """
    if branch := branch_of(config):
        return make_single_synthesis(config, branch)
    audio, s = config.audio, config.sample
    vocode = make_vocoder(audio, vocoder, s.griffin_lim_iters, s.griffin_lim_momentum)

    def synthesise(mel, features, keys) -> Float[jax.Array, "B N 2"]:
        ears = spatial_filter(vocode(mel, features, keys), features)
        return istft(ears, n_samples=audio.n_samples, n_fft=audio.n_fft, hop_length=audio.hop_length)

    return synthesise


class Generator:
    """Make clips with one bundle; compiled once per (steps, vocoder, batch size).

    Clips are made in batches of exactly `batch_size`, the last one filled up, each with keys of its own seed: so the
    same request gives the same samples whatever it is made together with.

    Args:
      steps, guidance_mel, guidance_stft, eta: None takes the bundle's default.
      vocoder: one of VOCODERS.

    Raises:
      ValueError: naming the field, its value and the rule.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        steps: int | None = None,
        guidance_mel: float | None = None,
        guidance_stft: float | None = None,
        eta: float | None = None,
        vocoder: str = VOCODERS[0],
        batch_size: int = 1,
    ):
        config = bundle.config
        s, d = config.sample, config.diffusion
        self.bundle, self.batch_size = bundle, batch_size
        self.steps = s.steps if steps is None else steps
        self.guidance_mel = s.guidance_mel if guidance_mel is None else guidance_mel
        self.guidance_stft = s.guidance_stft if guidance_stft is None else guidance_stft
        self.eta = s.eta if eta is None else eta
        self.vocoder = vocoder
        for field, value, low, high in (
            ("steps", self.steps, 1, d.num_steps),
            ("guidance_mel", self.guidance_mel, 0.0, 100.0),
            ("guidance_stft", self.guidance_stft, 0.0, 100.0),
            ("eta", self.eta, 0.0, 1.0),
            ("batch_size", batch_size, 1, 4096),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field} = {value}: must be in [{low}, {high}]")
        text_encoder = networks.make_text_encoder(config.text)
        unet = networks.make_unet(config.unet)
        mel_vae, stft_vae = networks.make_vae(config.mel_vae), networks.make_vae(config.stft_vae)
        alpha_bar = make_alpha_bar(d.schedule, d.num_steps)
        synthesise = make_synthesis(config, vocoder)
        n_mel = config.mel_vae.latent_channels
        shape = networks.latent_shape(config)
        mean, std = bundle.latent_mean, bundle.latent_std

        def text_features(params, ids, mask):
            return text_encoder.apply({"params": params["text_encoder"]}, ids, mask)

        def make(params, inputs):
            keys = jax.vmap(jax.random.key)(inputs["seed"])
            split = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
            k_noise, k_ddim, k_phase = split[:, 0], split[:, 1], split[:, 2]
            noise = jax.vmap(lambda k: jax.random.normal(k, shape))(k_noise)
            condition = {
                "text_emb": text_features(params, inputs["ids"], inputs["mask"]),
                "text_mask": inputs["mask"],
                "azimuth_deg": inputs["azimuth_deg"],
                "has_azimuth": inputs["has_azimuth"],
            }
            null = {
                "text_emb": text_features(params, inputs["negative_ids"], inputs["negative_mask"]),
                "text_mask": inputs["negative_mask"],
                "azimuth_deg": inputs["azimuth_deg"],
                "has_azimuth": jnp.zeros_like(inputs["has_azimuth"]),
            }
            denoiser = lambda x, t, **c: unet.apply({"params": params["unet"]}, x, t, **c)
            guided = guide(denoiser, condition, null, inputs["scale"])
            z = ddim_sample(
                guided, noise, k_ddim, alpha_bar, steps=self.steps, eta=inputs["eta"], prediction=d.prediction
            )
            z = z * std + mean
            mel = mel_vae.apply({"params": params["mel_vae"]}, z[..., :n_mel], method="decode")
            features = stft_vae.apply({"params": params["stft_vae"]}, z[..., n_mel:], method="decode")
            return synthesise(mel, features, k_phase)

        self._make = jax.jit(make)
        self._scale = np.repeat(
            np.float32([self.guidance_mel, self.guidance_stft]), [n_mel, config.stft_vae.latent_channels]
        )
        self._params = jax.device_put(bundle.params)
        self._compiled = None

    def compile(self) -> None:
        """Compile now (or load from the compile cache) rather than at the first clip."""
        if self._compiled is None:
            inputs = self._inputs([Request("")] * self.batch_size)
            self._compiled = self._make.lower(self._params, inputs).compile()

    def _inputs(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        length = self.bundle.config.text.max_length
        ids, mask = self.bundle.tokenizer.encode_batch([r.prompt for r in requests], length)
        negative_ids, negative_mask = self.bundle.tokenizer.encode_batch([r.negative_prompt for r in requests], length)
        return {
            "ids": ids,
            "mask": mask,
            "negative_ids": negative_ids,
            "negative_mask": negative_mask,
            "azimuth_deg": np.float32([r.azimuth_deg or 0.0 for r in requests]),
            "has_azimuth": np.array([r.azimuth_deg is not None for r in requests]),
            "seed": np.uint32([r.seed for r in requests]),
            "scale": self._scale,
            "eta": np.float32(self.eta),
        }

    def __call__(self, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        """Yield one waveform float32 [N, 2] per request, in order."""
        self.compile()
        for start in range(0, len(requests), self.batch_size):
            batch = list(requests[start : start + self.batch_size])
            filled = batch + [batch[-1]] * (self.batch_size - len(batch))
            waveforms = np.asarray(self._compiled(self._params, self._inputs(filled)))
            yield from waveforms[: len(batch)]
