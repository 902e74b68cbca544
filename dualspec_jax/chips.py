"""Accelerators to plan for: peak numbers of one chip, as their makers publish them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak numbers of one chip.

    Attributes:
      flops: dense products of matrices in bfloat16, FLOP/s.
      float32: the same of arrays in float32, as JAX multiplies them by default: TPUs round to bfloat16, GPUs to TF32.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: to the other chips of a node or slice, one direction, all links together, bytes/s.
      network: to chips of other nodes, bytes/s; None where there are none, as in a TPU slice.
      source: where the numbers are from.
    """

    flops: float
    float32: float
    memory: float
    bandwidth: float
    link: float
    network: float | None
    source: str


NODE = 8  # GPUs of a node
_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_NETWORK = "and dgx-h100 (a 400 Gb/s adapter for each GPU)"
CHIPS = {
    "v4": Chip(275e12, 275e12, 32 * 2**30, 1228e9, 300e9, None, f"{_TPU}v4"),
    "v5e": Chip(197e12, 197e12, 16e9, 819e9, 200e9, None, f"{_TPU}v5e"),
    "v5p": Chip(459e12, 459e12, 95 * 2**30, 2765e9, 600e9, None, f"{_TPU}v5p-training"),
    "v6e": Chip(918e12, 918e12, 32e9, 1640e9, 400e9, None, f"{_TPU}v6e"),
    "H100": Chip(989e12, 494e12, 80e9, 3350e9, 450e9, 50e9, f"{_NVIDIA}h100 (SXM; without sparsity) {_NETWORK}"),
    "H200": Chip(989e12, 494e12, 141e9, 4800e9, 450e9, 50e9, f"{_NVIDIA}h200 (SXM; without sparsity) {_NETWORK}"),
}
