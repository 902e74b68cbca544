"""Flax linen modules; no config object, no I/O."""
