"""Kernels in C++ for what XLA does slowly on a CPU; without a compiler the forms in JAX take their place."""
