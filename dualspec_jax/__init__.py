"""dualspec_jax: text to binaural audio with two spectrograms, two VAEs and one latent diffusion model."""

__version__ = "0.1.0"
