"""Noise schedule and samplers as array functions; the denoiser comes in as a callable."""
