"""Ablation: the STFT spectrogram alone, magnitudes of the content included.

Everything else, the budget of steps included, is that of embedded.py, whose parts before the diffusion model are used.
Command: link tfds, tokenizer.json, text_encoder, mel_vae, stft_vae and latents of embedded.py into a new workdir W;
`python -m dualspec_jax.train --config configs/ablation_stft.py --task diffusion --workdir W`, export and evaluate.
Hardware: two CPU cores.
Expected: azimuth like the dual model's or better, worse content.
"""

from ml_collections import ConfigDict

from configs import embedded


def get_config() -> ConfigDict:
    c = embedded.get_config()
    c.diffusion.mel_weight = 0.0  # the Mel branch is absent
    c.diffusion.stft_weight = 1.0
    return c
