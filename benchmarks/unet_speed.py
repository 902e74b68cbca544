"""The U-Net in JAX against diffusers in PyTorch, same weights, same machine, same run: ratios of times.

    python benchmarks/unet_speed.py --config configs/base_s.py --batch 2 --repeats 5 --out unet_speed.json

A train step is noise prediction, squared error, gradients and their norm, AdamW and the running average of the
parameters, on both sides; a guided step is one DDIM step with classifier-free guidance. Both keep what the backward
pass needs; with --remat both compute blocks again, whatever the config says. The variants take turns, so that what else
the machine does hits all of them. PyTorch, too, runs in a process that keeps freed memory (`allocator`), as ours does.
Needs the extra `parity`.
Prints for each variant, the median seconds, the seconds of the first call (compilation), and PyTorch float32's time
divided by its own. On a GPU, MFU is that of --chip's peak.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict, config_flags

from dualspec_jax import compile_cache, networks, pretrained
from dualspec_jax.chips import CHIPS
from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.diffusion.guidance import guide
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import sample_latent
from dualspec_jax.models import cpu
from dualspec_jax.train_step import init_state, make_train_step

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments import `configs`

LR, EMA_DECAY = 1e-4, 0.999


def inputs(config: ConfigDict, batch: int) -> dict[str, np.ndarray]:
    """Return a batch of random latents, steps, text features and targets."""
    rng = np.random.default_rng(0)
    latent = (batch, *networks.latent_shape(config))
    text = (batch, config.text.max_length, config.text.d_model)
    normal = lambda shape: rng.standard_normal(shape, np.float32)
    return {"x": normal(latent), "t": rng.integers(0, 1000, batch), "text": normal(text), "target": normal(latent)}


def torch_model(config: ConfigDict):
    """Return diffusers' U-Net of the config's shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from diffusers import UNet2DConditionModel
    torch.manual_seed(0)
    u, channels = config.unet, networks.latent_shape(config)[-1]
    kinds = lambda side, on: [f"CrossAttn{side}Block2D" if flag else f"{side}Block2D" for flag in on]
    return UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(u.channels),
        layers_per_block=u.layers_per_block,
        down_block_types=tuple(kinds("Down", u.attention)),
        up_block_types=tuple(kinds("Up", u.attention[::-1])),
        cross_attention_dim=config.text.d_model,
        attention_head_dim=tuple(width // u.head_dim for width in u.channels),
        norm_num_groups=u.norm_groups,
        use_linear_projection=True,
    )


def torch_variant(
    model, data: dict[str, np.ndarray], dtype: str, compiled: bool, device: str, scale: float, remat: bool
):
    """Return {"train": call, "guided": call, "output": call} that wait for their result; the model is changed."""
    import copy

    import torch
    from diffusers import DDIMScheduler

    tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)
    x, target = (tensor(data[name].transpose(0, 3, 1, 2)) for name in ("x", "target"))
    t, text = tensor(data["t"]), tensor(data["text"])
    model = copy.deepcopy(model).to(device).train()
    if remat:
        model.enable_gradient_checkpointing()
    forward = torch.compile(model) if compiled else model
    weights = list(model.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LR)
    cast = lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(25)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train():
        with cast():
            loss = torch.mean((forward(x, t, text).sample.float() - target) ** 2)
        loss.backward()
        torch.nn.utils.get_total_norm([weight.grad for weight in weights])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1.0 - EMA_DECAY)
        optimizer.zero_grad(set_to_none=True)
        wait()

    @torch.no_grad()
    def guided():
        with cast():
            out = forward(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, torch.zeros_like(text)])).sample
        with_condition, without = out.float().chunk(2)
        scheduler.step(without + scale * (with_condition - without), scheduler.timesteps[0], x)
        wait()

    @torch.no_grad()
    def output():
        return model(x, t, text).sample.permute(0, 2, 3, 1).float().cpu().numpy()

    return {"train": train, "guided": guided, "output": output}


def jax_variant(config: ConfigDict, params: Any, data: dict[str, np.ndarray], dtype: str, scale: float):
    """Return the same three calls for ours."""
    unet = networks.make_unet(config.unet, jnp.dtype(dtype), config.train.diffusion.remat)
    mask, zero = np.ones(data["text"].shape[:2], bool), np.zeros(len(data["x"]), np.float32)
    arrays = jax.device_put({**data, "mask": mask, "zero": zero})
    tx = optax.adamw(LR)

    def apply(params, x, t, text, mask, zero):
        return unet.apply({"params": params}, x, t, text, mask, zero, zero > 0)

    def loss_fn(params, batch, key):
        del key
        out = apply(params, batch["x"], batch["t"], batch["text"], batch["mask"], batch["zero"])
        return jnp.mean((out - batch["target"]) ** 2), {}

    def guided_step(params, batch):
        names = ("text", "mask", "zero")
        condition = {name: batch[name] for name in names}
        null = condition | {"text": jnp.zeros_like(batch["text"])}
        denoiser = lambda x, t, **c: apply(params, x, t, **c)
        guided = guide(denoiser, condition, null, jnp.full(batch["x"].shape[-1], scale))
        # The sampler of one step: the schedule is cut to the step that is timed.
        alpha_bar = make_alpha_bar("scaled_linear", 1000)[-1:]
        keys = jax.random.split(jax.random.key(0), len(batch["x"]))
        return sample_latent(guided, batch["x"], keys, alpha_bar, steps=1, prediction="eps")

    state = init_state(lambda key: jax.tree.map(jnp.array, params), tx, jax.random.key(0))
    step = jax.jit(make_train_step(loss_fn, tx, EMA_DECAY), donate_argnums=0)
    jitted, forward = jax.jit(guided_step), jax.jit(apply)
    inference = jax.device_put(params)

    def train():
        nonlocal state
        with cpu.long_runs():  # as the training loop does
            state, metrics = step(state, arrays, jax.random.key(0))
        jax.block_until_ready(metrics)

    def output():
        a = arrays
        return np.asarray(forward(inference, a["x"], a["t"], a["text"], a["mask"], a["zero"]))

    return {"train": train, "guided": lambda: jax.block_until_ready(jitted(inference, arrays)), "output": output}


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Return {name: {"first": seconds, "median": seconds}}, the calls taking turns, without their first three.

    In the second and third the heap that both share may still grow, whose pages the system clears: up to 3 s a call.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: {"first": t[0], "median": statistics.median(t[3:])} for name, t in times.items()}


def flops_of(config: ConfigDict, batch: int) -> dict[str, float]:
    """Return the FLOPs of a train step and of a guided step, nothing computed twice."""
    unet = networks.make_unet(config.unet)
    shapes = jax.eval_shape(lambda: inputs_as_arrays(config, batch))
    params = jax.eval_shape(lambda k, s: unet.init(k, *s)["params"], jax.random.key(0), shapes)
    apply = lambda p, *a: unet.apply({"params": p}, *a)
    loss = lambda p, *a: jnp.sum(apply(p, *a))
    with cpu.accelerator_forms():
        forward, backward = (
            float(jax.jit(fn).lower(params, *shapes).cost_analysis()["flops"]) for fn in (apply, jax.grad(loss))
        )
    return {"train": backward, "guided": 2 * forward}


def inputs_as_arrays(config: ConfigDict, batch: int):
    """Return the U-Net's inputs, all zero."""
    zero = jnp.zeros(batch)
    text = jnp.zeros((batch, config.text.max_length, config.text.d_model))
    latent = jnp.zeros((batch, *networks.latent_shape(config)))
    return latent, zero, text, jnp.ones(text.shape[:2], bool), zero, zero > 0


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    if not given.config:
        raise ValueError("--config is required, for example --config configs/base_s.py")
    config = given.config
    with config.unlocked():
        config.unet.update(
            azimuth_token=False, pooled_text=False, freq_embedding=False, condition_rows=False, patch=(1, 1)
        )
        config.train.diffusion.remat = given.remat
    validate(config)
    compile_cache.enable()
    gpu = jax.default_backend() == "gpu"
    data, scale = inputs(config, given.batch), 3.0
    reference = torch_model(config)
    abstract = jax.eval_shape(
        lambda k: networks.make_unet(config.unet).init(k, *inputs_as_arrays(config, 1))["params"], jax.random.key(0)
    )
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    source = json.loads(json.dumps(dict(reference.config)))  # lists, as in a config.json
    params = pretrained.convert(config, "diffusion", abstract, source, tensors)
    variants = {}
    for dtype in ("float32", "bfloat16") if given.bfloat16 else ("float32",):
        variants[f"jax {dtype}"] = jax_variant(config, params, data, dtype, scale)
        for compiled in (False, True) if given.compile else (False,):
            name = f"torch {dtype}{' compiled' if compiled else ''}"
            device = "cuda" if gpu else "cpu"
            variants[name] = torch_variant(reference, data, dtype, compiled, device, scale, given.remat)
    outputs = {name: calls["output"]() for name, calls in variants.items() if "float32" in name}
    error = float(np.max(np.abs(outputs["jax float32"] - outputs["torch float32"])))
    print(f"max abs difference of the float32 outputs: {error:.2e}")
    flops, results = flops_of(config, given.batch), {}
    for kind in ("train", "guided"):
        measured = measure({name: calls[kind] for name, calls in variants.items()}, given.repeats)
        for name, m in measured.items():
            m["speedup"] = measured["torch float32"]["median"] / m["median"]
            m["gflops_per_s"] = flops[kind] / m["median"] / 1e9
            line = (
                f"{kind:7s}{name:24s}{m['median']:9.3f} s, first {m['first']:7.1f} s, {m['gflops_per_s']:8.0f} GFLOP/s"
            )
            mfu = f", MFU {1e9 * m['gflops_per_s'] / CHIPS[given.chip].flops:.1%}" if gpu else ""
            print(f"{line}, {m['speedup']:5.2f} x torch float32{mfu}")
        results[kind] = measured
    if given.out:
        content = {"device": str(jax.devices()[0]), "batch": given.batch, "max_abs_difference": error, "times": results}
        Path(given.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_integer("batch", 1, "Examples.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Timed calls of each variant.", lower_bound=1)
    flags.DEFINE_bool("bfloat16", True, "bfloat16, too; on a CPU without it PyTorch takes minutes.")
    flags.DEFINE_bool("remat", False, "Compute blocks again in the backward pass, as to save memory.")
    flags.DEFINE_bool("compile", False, "torch.compile, too.")
    flags.DEFINE_enum("chip", "H200", list(CHIPS), "Peak for MFU, on a GPU.")
    flags.DEFINE_string("out", None, "JSON to write.")
    run(main)
