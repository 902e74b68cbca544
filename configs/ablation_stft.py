"""Ablation: the STFT spectrogram alone, magnitudes of the content included.

U-Net: 19.7 M parameters, 1.32e11 FLOPs in a step of 16 (`python -m dualspec_jax.sizes`).
The dual model's STFT-VAE keeps the cues and hardly the levels (1.9 nepers off), as its content comes from the Mel
branch: with it this ablation is silent. So the STFT-VAE here counts levels in full, and has its own latents. All else,
the budget of steps included, is that of embedded.py, whose parts before the diffusion model are used.
Command: `python -m dualspec_jax.import_bundle --config configs/ablation_stft.py --workdir W`, link embedded.py's tfds
into W, delete W/diffusion; `python -m dualspec_jax.train --config configs/ablation_stft.py --workdir W --task stft_vae`
(from the imported weights), encode, `--task diffusion`, export and evaluate.
Hardware: two CPU cores.
Expected: azimuth like the dual model's or better, worse content.
"""

from ml_collections import ConfigDict

from configs import embedded


def get_config() -> ConfigDict:
    c = embedded.get_config()
    c.stft_vae.level_weight = 1.0
    c.diffusion.mel_weight = 0.0  # the Mel branch is absent
    c.diffusion.stft_weight = 1.0
    return c
