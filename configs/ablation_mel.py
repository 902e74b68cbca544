"""Ablation: the Mel spectrogram alone; each ear is vocoded by itself.

U-Net: 19.7 M parameters, 1.32e11 FLOPs in a step of 16 (`python -m dualspec_jax.sizes`).
Everything else, the budget of steps included, is that of embedded.py, whose parts before the diffusion model are used.
Command: link tfds, tokenizer.json, text_encoder, mel_vae, stft_vae and latents of embedded.py into a new workdir W;
`python -m dualspec_jax.train --config configs/ablation_mel.py --task diffusion --workdir W`, export and evaluate.
Hardware: two CPU cores.
Expected: content like the dual model's or better, ITD lost (about 300 us error), azimuth from levels only.
"""

from ml_collections import ConfigDict

from configs import embedded


def get_config() -> ConfigDict:
    c = embedded.get_config()
    c.diffusion.stft_weight = 0.0  # the STFT branch is absent
    return c
