"""Plan before paying: `python -m dualspec_jax.plan --config configs/base.py --devices 256 --mesh 32x8x1 --chip v5e`.

Compiles the real train step for that many virtual CPU devices and prints, for one chip: memory, communication,
predicted step time and MFU, and on which chips it fits. `--out plan.png` draws the breakdown. Assumptions:

* Temporary memory (activations) is what XLA's CPU compiler allocates; where it computes bfloat16 in float32, that is up
  to twice what an accelerator needs.
* Communication is the bytes of the collectives in the compiled program, ring algorithms, over all links of a chip, not
  overlapped with anything. XLA's CPU compiler sums split gradients by all-reduce; those of GPUs and TPUs may take
  reduce-scatter, half the bytes. Between nodes of eight GPUs it goes over their network.
* Matrix units run at `--efficiency` of their peak when they run.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from dualspec_jax.chips import CHIPS, NODE
from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate

_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(rf"= (.+?) ({_COLLECTIVES})(?:-start)?\(")
_SHAPE = re.compile(r"(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)")


def _bytes_of(shapes: str) -> int:
    total = 0
    for kind, dims in _SHAPE.findall(shapes):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total


def _groups(line: str, devices: int) -> np.ndarray:
    """Return the devices of each group, [groups, size]."""
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line)
    if listed:
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed.group(1))])
    return np.arange(devices)[None]


def _sent(kind: str, result: int, group: int) -> float:
    """Return the bytes that one device sends, by ring algorithms, for a collective with this result."""
    share = (group - 1) / group
    return {
        "all-gather": share * result,
        "all-reduce": 2 * share * result,
        "reduce-scatter": (group - 1) * result,
        "all-to-all": share * result,
        "collective-permute": float(result),
    }[kind]


def collective_bytes(hlo: str, devices: int, across: int = 1) -> dict[str, float]:
    """Return {kind: bytes that one device sends} of a compiled program; the body of a loop counts once per turn.

    Args:
      across: only of collectives that leave a block of so many devices, which stand one after the other.
    """
    own: dict[str, list[tuple[str, float]]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    entry = name = ""
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header.group(2)
            entry = name if header.group(1) else entry
            continue
        found = _INSTRUCTION.search(line)
        if found:
            groups = _groups(line, devices)
            if (groups // across != groups[:, :1] // across).any():
                own[name].append((found.group(2), _sent(found.group(2), _bytes_of(found.group(1)), groups.shape[1])))
            continue
        turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        calls[name] += [(called, int(turns.group(1)) if turns else 1) for called in _CALLED.findall(line)]

    def walk(computation: str, times: int) -> Iterator[tuple[str, float]]:
        for kind, sent in own[computation]:
            yield kind, times * sent
        for called, turns in calls[computation]:
            yield from walk(called, times * turns)

    total: dict[str, float] = defaultdict(float)
    for kind, sent in walk(entry, 1):
        total[kind] += sent
    return dict(total)


def make_plan(config: ConfigDict, task: str, mesh_shape: tuple[int | None, int, int]) -> dict[str, Any]:
    """Compile the train step on the devices of this process; return what does not depend on the chip.

    Returns: parameters, devices, mesh; flops of one step (`model`, `with_recomputation`), of the whole batch; bytes on
    one device (`params`, `ema_params`, `opt_state`, `frozen`, `batch`, `temporary`; `arguments` as the compiler counts
    them); `sent`: {collective: bytes that one device sends in a step}; `sent_between_nodes`: those of collectives that
    leave a node of eight; `dtype`; the seconds it took to compile.

    Raises:
      ValueError: the mesh does not fit the devices or the batch; unknown task.
    """
    import time

    import jax

    from dualspec_jax.models.cpu import accelerator_forms
    from dualspec_jax.sharding import (
        batch_sharding,
        bytes_per_device,
        infer_sharding,
        make_mesh,
        replicated,
        with_whole_weights,
    )
    from dualspec_jax.sizes import abstract_step, count_parameters, step_flops

    c = config.train[task]
    data, fsdp, tensor = mesh_shape
    mesh = make_mesh(c.batch_size // c.accumulate, fsdp, tensor, data=data)
    if data is None and mesh.size != jax.device_count():
        n, at_once = jax.device_count(), f"train.{task}.batch_size / accumulate = {c.batch_size // c.accumulate}"
        raise ValueError(f"--devices={n}: {at_once} must be a multiple of data * fsdp = {n // tensor}")
    wrap = lambda fn: with_whole_weights(fn, mesh, config.mesh.min_shard_size)
    _, step, (state, batch, key, *frozen) = abstract_step(config, task, wrap)
    where = infer_sharding((state, tuple(frozen)), mesh, config.mesh.min_shard_size)
    put = lambda tree, shardings: jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
    state, frozen = put((state, tuple(frozen)), where)
    batch = put(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
    jitted = jax.jit(
        step,
        in_shardings=(where[0], batch_sharding(mesh), replicated(mesh), *where[1]),
        out_shardings=(where[0], replicated(mesh)),
        donate_argnums=0,
    )
    start = time.perf_counter()
    # The machine code is never run: no effort for it. Memory and collectives are settled before it is made.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    with accelerator_forms():
        lowered = jitted.lower(state, batch, key, *frozen)
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - start
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    parts = {name: bytes_per_device(getattr(state, name)) for name in ("params", "ema_params", "opt_state")}
    parts |= {"frozen": bytes_per_device(frozen), "batch": bytes_per_device(batch)}
    return {
        "task": task,
        "parameters": count_parameters(state.params),
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": c.batch_size,
        "dtype": c.dtype,
        "flops": {"model": step_flops(config, task), "with_recomputation": step_flops(config, task, c.remat)},
        "bytes": parts | {"temporary": memory.temp_size_in_bytes, "arguments": memory.argument_size_in_bytes},
        "sent": collective_bytes(hlo, mesh.size),
        "sent_between_nodes": sum(collective_bytes(hlo, mesh.size, across=NODE).values()),
        "compile_seconds": seconds,
    }


def predict(plan: dict[str, Any], chip: str, efficiency: float) -> dict[str, float]:
    """Return seconds of a step (`compute`, `memory`: reading and writing the state, `communication`, `step`), `mfu` of
    the peak for the plan's dtype, and `used`, the fraction of the chip's memory."""
    c, b = CHIPS[chip], plan["bytes"]
    state = b["params"] + b["ema_params"] + b["opt_state"]
    peak = c.float32 if plan["dtype"] == "float32" else c.flops
    sent, far = sum(plan["sent"].values()), plan["sent_between_nodes"] if c.network else 0.0
    seconds = {
        "compute": plan["flops"]["with_recomputation"] / plan["devices"] / (peak * efficiency),
        "memory": 2 * state / c.bandwidth,
        "communication": (sent - far) / c.link + (far / c.network if far else 0.0),
    }
    step = sum(seconds.values())
    mfu = plan["flops"]["model"] / plan["devices"] / peak / step
    return seconds | {"step": step, "mfu": mfu, "used": (b["arguments"] + b["temporary"]) / c.memory}


def report(plan: dict[str, Any], chip: str, efficiency: float) -> str:
    """Return the plan as text."""
    b, p = plan["bytes"], predict(plan, chip, efficiency)
    gb = lambda n: f"{n / 1e9:9.3f} GB"
    lines = [
        f"{plan['task']}: {plan['parameters'] / 1e6:.1f} M parameters, batch {plan['batch_size']}, mesh {plan['mesh']}",
        f"FLOPs per step: {plan['flops']['model']:.3g}, with recomputation {plan['flops']['with_recomputation']:.3g}",
        "memory of one device:",
        *(f"  {name:12s}{gb(b[name])}" for name in b if name != "arguments"),
        f"  {'together':12s}{gb(b['arguments'] + b['temporary'])}",
        "sent by one device in a step:",
        *(f"  {kind:20s}{gb(sent)}" for kind, sent in plan["sent"].items()),
        f"on {plan['devices']} x {chip}, matrix units at {efficiency:.0%} of their peak in {plan['dtype']}:",
        *(f"  {name:14s}{1e3 * p[name]:9.2f} ms" for name in ("compute", "memory", "communication", "step")),
        f"  MFU {p['mfu']:.1%}, {plan['batch_size'] / p['step']:.1f} examples/s",
    ]
    parts = {name: size for name, size in b.items() if name != "arguments"}
    largest = max(parts, key=parts.get)
    for name, c in CHIPS.items():
        used = predict(plan, name, efficiency)["used"]
        advice = (
            "fits" if used <= 0.9 else f"OUT OF MEMORY, largest: {largest}; {_ADVICE.get(largest, _ADVICE['params'])}"
        )
        lines.append(f"  {name:5s}{used:7.1%} of {c.memory / 1e9:.0f} GB: {advice}")
    return "\n".join(lines)


_ADVICE = {
    "temporary": "more devices on data or fsdp, a smaller batch, accumulate, or remat",
    "batch": "more devices on data or fsdp, or a smaller batch",
    "params": "more devices on fsdp or tensor",
}


def draw(plan: dict[str, Any], chip: str, efficiency: float, path: Path) -> None:
    """Save a picture of memory, communication and time as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    p = predict(plan, chip, efficiency)
    panels = (
        ("memory of one device, GB", {n: v / 1e9 for n, v in plan["bytes"].items() if n != "arguments"}),
        ("sent by one device, GB per step", {n: v / 1e9 for n, v in plan["sent"].items()}),
        (f"time of a step on {chip}, ms", {n: 1e3 * p[n] for n in ("compute", "memory", "communication")}),
    )
    for ax, (title, bars) in zip(axes, panels, strict=True):
        ax.barh(list(bars), list(bars.values()))
        ax.invert_yaxis()
        ax.set_title(title)
    axes[0].axvline(CHIPS[chip].memory / 1e9, color="k", linestyle="--")
    figure.savefig(path)


def parse_mesh(text: str) -> tuple[int, int, int]:
    """Return (data, fsdp, tensor) of a text such as 32x8x1.

    Raises:
      ValueError: it has another form.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"--mesh={text}: must be DATAxFSDPxTENSOR, such as 32x8x1")
    data, fsdp, tensor = map(int, text.split("x"))
    return data, fsdp, tensor


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    if not given.config:
        raise ValueError("--config is required, for example --config configs/base.py")
    validate(given.config)
    m = given.config.mesh
    shape = parse_mesh(given.mesh) if given.mesh else (m.data, m.fsdp, m.tensor)
    if given.mesh and math.prod(shape) != given.devices:
        raise ValueError(f"--mesh={given.mesh}: its product must be --devices={given.devices}")
    if not 0.01 <= given.efficiency <= 1.0:  # also not a number
        raise ValueError(f"--efficiency={given.efficiency}: must be in [0.01, 1]")
    for name, suffix in (("out", ".png"), ("json", "")):
        path = Path(given[name].value or f"plan{suffix}").absolute()
        if not path.parent.is_dir():
            raise ValueError(f"--{name}={path}: its folder does not exist")
        if path.is_dir() or not path.name.endswith(suffix):
            raise ValueError(f"--{name}={path}: must be a file{f' named *{suffix}' if suffix else ''}")
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported
    count = f"--xla_force_host_platform_device_count={given.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    from dualspec_jax.tasks import MODELS

    if given.task not in MODELS:
        raise ValueError(f"--task={given.task}: must be one of {', '.join(MODELS)}")
    plan = make_plan(given.config, given.task, shape)
    print(report(plan, given.chip, given.efficiency))
    if given.json:
        Path(given.json).write_text(json.dumps(plan, indent=1) + "\n")
    if given.out:
        draw(plan, given.chip, given.efficiency, Path(given.out))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("task", "diffusion", "mel_vae, stft_vae, text_encoder or diffusion.")
    flags.DEFINE_integer("devices", 8, "How many.", lower_bound=1)
    flags.DEFINE_string("mesh", None, "DATAxFSDPxTENSOR; default: that of the config.")
    flags.DEFINE_enum("chip", "v5e", list(CHIPS), "What to predict for.")
    flags.DEFINE_float("efficiency", 0.6, "Fraction of the peak that matrix units reach.")
    flags.DEFINE_string("out", None, "PNG to draw.")
    flags.DEFINE_string("json", None, "File to write the numbers to.")
    run(main)
