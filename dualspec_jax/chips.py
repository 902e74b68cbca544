"""Accelerators to plan for: peak numbers of one chip, as their makers publish them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak numbers of one chip.

    Attributes:
      flops: dense bfloat16 matrix products, FLOP/s.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: to the other chips, one direction, all links together, bytes/s.
      source: where the numbers are from.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, f"{_TPU}v4"),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, f"{_TPU}v5e"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, f"{_TPU}v5p-training"),
    "v6e": Chip(918e12, 32e9, 1640e9, 400e9, f"{_TPU}v6e"),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9, f"{_NVIDIA}h100 (SXM; without sparsity)"),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9, f"{_NVIDIA}h200 (SXM; without sparsity)"),
}
