"""Mesh, batch and state shardings; the only file that knows mesh axis names."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
MIN_SHARD_SIZE = 2**16  # elements; smaller arrays cost more to gather than to keep everywhere


def make_mesh(batch_size: int, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh ("data", "fsdp", "tensor") over the devices of all processes.

    The batch is split over "data" and "fsdp". On a single process where it does not divide, the mesh takes fewer
    devices.

    Args:
      batch_size: examples of a batch, in all processes together.
      fsdp, tensor: devices along these axes; the others go to "data".
      devices: default: all of them.

    Raises:
      ValueError: the axes do not fit the devices, or the batch the axes.
    """
    devices = list(jax.devices() if devices is None else devices)
    if fsdp < 1 or tensor < 1 or len(devices) % (fsdp * tensor):
        raise ValueError(f"fsdp = {fsdp}, tensor = {tensor}: their product must divide the {len(devices)} devices")
    if batch_size % fsdp:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of fsdp = {fsdp}")
    data = len(devices) // (fsdp * tensor)
    fitting = math.gcd(batch_size // fsdp, data)
    if fitting != data and jax.process_count() > 1:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of data * fsdp = {data * fsdp}")
    devices = devices[: fitting * fsdp * tensor]
    return jax.make_mesh((fitting, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def infer_sharding(abstract: Any, mesh: Mesh, min_size: int = MIN_SHARD_SIZE) -> Any:
    """Return a sharding for each array: its largest divisible axis goes on "fsdp".

    Arrays of fewer than `min_size` elements, and those with no divisible axis, are replicated. Among equal axes the
    last wins. Models stay unaware of the mesh.

    Args:
      abstract: tree of arrays or `jax.ShapeDtypeStruct`.
    """
    n = mesh.shape["fsdp"]

    def sharding(x) -> NamedSharding:
        divisible = [i for i, size in enumerate(x.shape) if size % n == 0 and size > 0]
        if n == 1 or math.prod(x.shape) < min_size or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda i: (x.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(sharding, abstract)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Put a NumPy batch on the devices, split along its first axis.

    With several processes, each has read the same whole batch and gives its own part of it: positions and results do
    not depend on how many there are, at the price of reading everything everywhere.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() > 1:
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)
    return jax.device_put(batch, sharding)


def split_batch(function: Callable, batch_size: int, batched: Sequence[bool]) -> Any:
    """Return a jitted function whose batch is split over the devices, each making its samples on its own.

    Args:
      function: its samples do not depend on each other; every result has a leading batch axis.
      batched: for each argument, whether it has a leading batch axis; others go to every device.
    """
    mesh = make_mesh(batch_size)
    if mesh.size == 1:
        return jax.jit(function)
    batch = batch_sharding(mesh)
    shardings = tuple(batch if b else replicated(mesh) for b in batched)
    specs = tuple(s.spec for s in shardings)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=batch.spec, check_vma=False)
    return jax.jit(mapped, in_shardings=shardings, out_shardings=batch)
