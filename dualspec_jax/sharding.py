"""Mesh, batch and state shardings; the only file that knows mesh axis names."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
MIN_SHARD_SIZE = 2**16  # elements; smaller arrays cost more to gather than to keep everywhere

# Layers that read what a layer split over "tensor" has made: their inputs are split, so that the two need one sum
# between them and no gathering (Shoeybi et al. 2019, arXiv:1909.08053). All other layers split their outputs.
_SPLIT_INPUT = re.compile(r"to_out|ff_out|conv2|linear_2|time_linear_2|layer_\d+_(o|wo)")


def make_mesh(
    batch_size: int,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    data: int | None = None,
) -> Mesh:
    """Return a mesh ("data", "fsdp", "tensor") over the devices of all processes.

    The batch is split over "data" and "fsdp". On a single process where it does not divide, the mesh takes fewer
    devices.

    Args:
      batch_size: examples of a batch, in all processes together (of one of its parts, where gradients are accumulated).
      fsdp, tensor: devices along these axes.
      devices: default: all of them.
      data: devices along this axis; None = all the others. On a single process, the first ones are taken.

    Raises:
      ValueError: the axes do not fit the devices, or the batch the axes.
    """
    devices = list(jax.devices() if devices is None else devices)
    if fsdp < 1 or tensor < 1 or len(devices) % (fsdp * tensor):
        raise ValueError(f"fsdp = {fsdp}, tensor = {tensor}: their product must divide the {len(devices)} devices")
    if batch_size % fsdp:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of fsdp = {fsdp}")
    free = len(devices) // (fsdp * tensor)
    if data is not None and (data > free or (data < free and jax.process_count() > 1)):
        raise ValueError(f"data = {data}: data * fsdp * tensor must be the {len(devices)} devices")
    fitting = math.gcd(batch_size // fsdp, free) if data is None else data
    if batch_size % (fitting * fsdp) or (fitting != free and jax.process_count() > 1):
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of data * fsdp = {(data or free) * fsdp}")
    devices = devices[: fitting * fsdp * tensor]
    return jax.make_mesh((fitting, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def infer_sharding(abstract: Any, mesh: Mesh, min_size: int = MIN_SHARD_SIZE) -> Any:
    """Return a sharding for each array, from its shape and its layer's name; models stay unaware of the mesh.

    "tensor" takes the last axis (a layer's outputs) of arrays of two axes or more, or the one before (its inputs) in
    the layers that read such outputs, if it divides. "fsdp" takes the largest divisible axis that is left; among equal
    axes the last wins. Arrays of fewer than `min_size` elements, and those with no divisible axis, are replicated.

    Args:
      abstract: tree of arrays or `jax.ShapeDtypeStruct`: parameters, or a state whose parts have the same names.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def sharding(path, x) -> NamedSharding:
        spec = [None] * len(x.shape)
        if math.prod(x.shape) < min_size:
            return replicated(mesh)
        if tensor > 1 and len(spec) > 1:
            layer = str(getattr(path[-2], "key", "")) if len(path) > 1 else ""
            axis = len(spec) - (2 if _SPLIT_INPUT.fullmatch(layer) else 1)
            if x.shape[axis] % tensor == 0 and x.shape[axis] > 0:
                spec[axis] = "tensor"
        divisible = [i for i, size in enumerate(x.shape) if spec[i] is None and size % fsdp == 0 and size > 0]
        if fsdp > 1 and divisible:
            spec[max(divisible, key=lambda i: (x.shape[i], i))] = "fsdp"
        while spec and spec[-1] is None:
            spec.pop()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def with_whole_weights(loss_fn: Callable, mesh: Mesh, min_size: int = MIN_SHARD_SIZE) -> Callable:
    """Return loss_fn(params, batch, key, *frozen) on weights that are gathered over "fsdp" before they are used.

    Left to itself, XLA computes some layers on split weights instead; with "data", "fsdp" and "tensor" all over 1 its
    convolutions then came out wrong (jax 0.10.2 on CPU: the U-Net's output off by more than its own size; compare
    https://github.com/jax-ml/jax/issues/16894). Gradients come back split.

    Args:
      min_size: that of `infer_sharding`.
    """
    if mesh.shape["fsdp"] == 1:
        return loss_fn

    def whole(s: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(None if axis == "fsdp" else axis for axis in s.spec)))

    def on_whole_weights(params, batch, key, *frozen):
        shardings = jax.tree.map(whole, infer_sharding((params, frozen), mesh, min_size))
        params, frozen = jax.lax.with_sharding_constraint((params, frozen), shardings)
        return loss_fn(params, batch, key, *frozen)

    return on_whole_weights


def place(tree: Any, shardings: Any) -> Any:
    """Put NumPy arrays, the same in every process, on the devices of all processes."""
    if jax.process_count() > 1:
        return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__), tree, shardings)
    return jax.device_put(tree, shardings)


def host_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Return (index, count): this process needs rows [index, index + 1) * batch_size / count of every batch.

    Processes whose devices hold the same rows, as where "tensor" spans them, have the same index. (0, 1), the whole
    batch, where the mesh deals the rows out otherwise than in equal parts one after the other.
    """
    rows: dict[int, set[int]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        rows.setdefault(device.process_index, set()).update(range(*index[0].indices(batch_size)))
    return share_of_rows(rows, jax.process_index(), batch_size)


def share_of_rows(rows: dict[int, set[int]], process: int, batch_size: int) -> tuple[int, int]:
    """Return `host_share` of a process, from the rows that each of them holds."""
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    count = len(parts)
    even = [tuple(range(i * batch_size // count, (i + 1) * batch_size // count)) for i in range(count)]
    if batch_size % count or parts != even:
        return 0, 1
    return parts.index(tuple(sorted(rows[process]))), count


def place_batch(batch: Any, mesh: Mesh, count: int = 1) -> Any:
    """Put a NumPy batch on the devices, split along its first axis.

    Args:
      batch: the whole batch, or this process's part of it, see `host_share`.
      count: of the parts.
    """
    sharding = batch_sharding(mesh)
    if count == 1:
        return place(batch, jax.tree.map(lambda _: sharding, batch))
    whole = lambda x: jax.make_array_from_process_local_data(sharding, x, (count * len(x), *x.shape[1:]))
    return jax.tree.map(whole, batch)


def gather(tree: Any) -> Any:
    """Return whole arrays that this process can use alone; every process must call it, each gets all."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree on the device that holds most of it.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct` with shardings.
    """
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
