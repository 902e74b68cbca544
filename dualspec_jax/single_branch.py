"""Audio from one spectrogram alone, for the ablations: a config whose other branch has weight 0 in the diffusion loss.

The latents of an absent branch are zero in training (see `losses.diffusion_loss`), so that the sampler, which knows
nothing of it, makes about that branch's mean, which is not used here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dualspec_jax.ops.binaural import spatial_filter
from dualspec_jax.ops.griffin_lim import griffin_lim
from dualspec_jax.ops.mel import mel_filters, mel_to_magnitude
from dualspec_jax.ops.stft import istft


def branch_of(config: ConfigDict) -> str | None:
    """Return "mel" or "stft" if that is the only branch of a model, None if it has both.

    Raises:
      ValueError: both weights are 0.
    """
    weights = {"mel": config.diffusion.mel_weight, "stft": config.diffusion.stft_weight}
    present = [name for name, weight in weights.items() if weight > 0]
    if not present:
        raise ValueError("config.diffusion.mel_weight = stft_weight = 0: at least one branch must count")
    return present[0] if len(present) == 1 else None


def make_single_synthesis(config: ConfigDict, branch: str) -> Callable:
    """Return (mel [B,T,M,2], features [B,T,F,4], keys [B]) -> waveform [B,N,2] that uses one branch.

    mel: each ear by itself, magnitudes from its Mel spectrogram, phases by Griffin-Lim from the same random start in
    both ears: levels tell the direction, phases hardly do. stft: magnitudes of the content from the levels of both
    ears, phases by Griffin-Lim, then the spatial filter with levels and phases of the same branch.
    """
    audio, s = config.audio, config.sample
    size = {"n_samples": audio.n_samples, "n_fft": audio.n_fft, "hop_length": audio.hop_length}
    search = size | {"iters": s.griffin_lim_iters, "momentum": s.griffin_lim_momentum}
    filters = mel_filters(audio)

    def from_mel(mel, features, keys):
        del features
        ears = [griffin_lim(mel_to_magnitude(mel[..., ear], filters), keys, **search) for ear in (0, 1)]
        return istft(jnp.stack(ears, axis=-1), **size)

    def from_stft(mel, features, keys):
        del mel
        magnitude = jnp.exp(0.5 * jax.nn.logsumexp(2.0 * features[..., :2], axis=-1))
        return istft(spatial_filter(griffin_lim(magnitude, keys, **search), features), **size)

    return {"mel": from_mel, "stft": from_stft}[branch]
