"""Parameters from local folders in the formats of diffusers and transformers: names, axes, widening.

A folder holds `config.json` and `*.safetensors` (one file, or several with an index); pickled weights are refused.
What our networks have and the reference has not (azimuth token, frequency embedding, caption heads) starts fresh.

**Widening.** Public weights know one ear and one latent; our first and last convolutions are wider:

* A VAE repeats the channels of its first convolution and divides them by the number of repeats, and repeats those of
  its last one: fed with equal ears the Mel-VAE does exactly what the reference does with one, and both ears come out
  equal. `input_mean` and `input_std` stand before the reference, as the normalisation that it was trained with: zeros
  pad its convolutions, so no weights undo a wrong one. The STFT-VAE's features and patches are unlike any reference's:
  there the repeats are no more than a start.
* The U-Net puts zeros for the new latents into its first and last convolution: the first latents (Mel) are predicted
  exactly as before, whatever the new ones (STFT) are, and those start at a prediction of zero. That is without the
  azimuth token, `freq_embedding`, `pooled_text` and `text.event_codes`, whose fresh parameters are random.

In both cases every new weight has a gradient from the first step on.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
)


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (config, {name: float32 array}) of a folder.

    Raises:
      ValueError: no config.json, no safetensors, a file that cannot be read, or a tensor of integers or with NaN.
    """
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # not NumPy's, which has no bfloat16

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        parts = ", ".join(sorted(path.parent.name for path in folder.glob("*/config.json")))
        rule = f"choose one of its folders {parts}" if parts else "a diffusers or transformers folder is needed"
        raise ValueError(f"source = {str(folder)!r}: no config.json there; {rule}")
    config = _read_object(folder / "config.json")
    indices = [folder / f"{name}.index.json" for name in _NAMES if (folder / f"{name}.index.json").is_file()]
    if indices:
        weight_map = _read_object(indices[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"source file {str(indices[0])!r}: weight_map must name the file of each tensor")
        files = sorted(set(weight_map.values()))
    else:
        files = [name for name in _NAMES if (folder / name).is_file()][:1]
    if not files:
        rule = "save pickled weights again with safe_serialization=True"
        raise ValueError(f"source = {str(folder)!r}: no {' or '.join(_NAMES)}; {rule}")
    tensors = {}
    for name in files:
        try:
            loaded = load_file(str(folder / name))
        except (SafetensorError, OSError) as e:
            raise ValueError(f"source file {str(folder / name)!r}: not a readable safetensors file ({e})") from e
        for key, value in loaded.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(f"source tensor {key}: {value.dtype}; quantised weights cannot be converted")
            tensors[key] = np.asarray(value, np.float32)
            if not np.isfinite(tensors[key]).all():
                raise ValueError(f"source tensor {key}: has values that are not finite")
    return config, tensors


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as e:  # of the encoding or of JSON
        raise ValueError(f"source file {str(path)!r}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise ValueError(f"source file {str(path)!r}: must be a JSON object, not {type(value).__name__}")
    return value


def _translate(rules: list[tuple[str, Any]], path: str) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, path)
        if match:
            return replacement(*match.groups()) if callable(replacement) else replacement and match.expand(replacement)
    raise AssertionError(f"no rule for {path}")


_INNER = {"to_out": "to_out.0", "ff_in": "ff.net.0.proj", "ff_out": "ff.net.2"}


def _unet_name(path: str, levels: int) -> str | None:
    """Return the layer of UNet2DConditionModel for one of ours; None where it has none."""

    def inner(rest: str) -> str:
        if rest in ("norm", "proj_in", "proj_out"):
            return rest
        return ".".join(["transformer_blocks.0", *(_INNER.get(part, part) for part in rest.split("/"))])

    up = lambda level: levels - 1 - int(level)
    rules = [
        (r"freq_embedding|condition_rows|text_proj|azimuth_proj|azimuth_embedding/\w+", None),
        (r"time_(linear_[12])", r"time_embedding.\1"),
        (r"(conv_in|conv_norm_out|conv_out)", r"\1"),
        (r"down_(\d+)_resnets_(\d+)/(\w+)", r"down_blocks.\1.resnets.\2.\3"),
        (r"down_(\d+)_attentions_(\d+)/(.+)", lambda i, j, r: f"down_blocks.{i}.attentions.{j}.{inner(r)}"),
        (r"down_(\d+)_downsample/conv", r"down_blocks.\1.downsamplers.0.conv"),
        (r"mid_resnets_(\d+)/(\w+)", r"mid_block.resnets.\1.\2"),
        (r"mid_attentions_0/(.+)", lambda r: f"mid_block.attentions.0.{inner(r)}"),
        (r"up_(\d+)_resnets_(\d+)/(\w+)", lambda i, j, r: f"up_blocks.{up(i)}.resnets.{j}.{r}"),
        (r"up_(\d+)_attentions_(\d+)/(.+)", lambda i, j, r: f"up_blocks.{up(i)}.attentions.{j}.{inner(r)}"),
        (r"up_(\d+)_upsample/conv", lambda i: f"up_blocks.{up(i)}.upsamplers.0.conv"),
    ]
    return _translate(rules, path)


def _vae_name(path: str, levels: int) -> str:
    """Return the layer of AutoencoderKL for one of ours."""
    up = lambda level: levels - 1 - int(level)
    rules = [
        (r"(quant_conv|post_quant_conv)", r"\1"),
        (r"(encoder|decoder)/(conv_in|conv_norm_out|conv_out)", r"\1.\2"),
        (r"(encoder|decoder)/mid/resnets_(\d+)/(\w+)", r"\1.mid_block.resnets.\2.\3"),
        (r"(encoder|decoder)/mid/attention/group_norm", r"\1.mid_block.attentions.0.group_norm"),
        (r"(encoder|decoder)/mid/attention/attention/(to_[qkv])", r"\1.mid_block.attentions.0.\2"),
        (r"(encoder|decoder)/mid/attention/attention/to_out", r"\1.mid_block.attentions.0.to_out.0"),
        (r"encoder/down_(\d+)_resnets_(\d+)/(\w+)", r"encoder.down_blocks.\1.resnets.\2.\3"),
        (r"encoder/down_(\d+)_downsample/conv", r"encoder.down_blocks.\1.downsamplers.0.conv"),
        (r"decoder/up_(\d+)_resnets_(\d+)/(\w+)", lambda i, j, r: f"decoder.up_blocks.{up(i)}.resnets.{j}.{r}"),
        (r"decoder/up_(\d+)_upsample/conv", lambda i: f"decoder.up_blocks.{up(i)}.upsamplers.0.conv"),
    ]
    return _translate(rules, path)


def _t5_name(path: str) -> str | None:
    """Return the layer of T5EncoderModel for one of ours; None for the caption heads and the codes of events."""
    block = "encoder.block"
    rules = [
        (r"heads/.+|encoder/event", None),
        (r"encoder", None),  # its own array, the table of the events' codes
        (r"encoder/shared", "shared"),
        (r"encoder/relative_attention_bias", f"{block}.0.layer.0.SelfAttention.relative_attention_bias"),
        (r"encoder/layer_(\d+)_attention_norm", block + r".\1.layer.0.layer_norm"),
        (r"encoder/layer_(\d+)_([qkvo])", block + r".\1.layer.0.SelfAttention.\2"),
        (r"encoder/layer_(\d+)_ff_norm", block + r".\1.layer.1.layer_norm"),
        (r"encoder/layer_(\d+)_(wi_0|wi_1|wo)", block + r".\1.layer.1.DenseReluDense.\2"),
        (r"encoder/final_norm", "encoder.final_layer_norm"),
    ]
    return _translate(rules, path)


# Names that older files of the same models use.
_OLDER = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
    "shared.": "encoder.embed_tokens.",
}


def _axes(value: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    """Return a tensor with its axes in our order."""
    if leaf != "kernel":
        return value
    if value.ndim == 4 and ndim == 2:  # a 1x1 convolution where we have a dense layer
        value = value[:, :, 0, 0]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def widen(value: np.ndarray, shape: tuple[int, ...], *, inputs: bool, repeat: bool) -> np.ndarray:
    """Widen a convolution's kernel [H, W, I, O] or bias [O] to `shape`; see the module's docstring.

    Args:
      inputs: widen I, else O.
      repeat: repeat the channels (and divide inputs by the number of repeats); else fill with zeros.

    Raises:
      ValueError: `shape` is smaller, differs in another axis, or is not a multiple where channels are repeated.
    """
    axis = value.ndim - (2 if inputs and value.ndim > 1 else 1)
    have, want = value.shape[axis], shape[axis]
    if value.shape[:axis] + value.shape[axis + 1 :] != shape[:axis] + shape[axis + 1 :] or want < have:
        raise ValueError(f"shape = {shape}: a tensor of shape {value.shape} cannot be widened to it")
    if not repeat:
        padding = [(0, want - have if i == axis else 0) for i in range(value.ndim)]
        return np.pad(value, padding)
    if want % have:
        raise ValueError(f"shape = {shape}: axis {axis} must be a multiple of {have} to repeat its channels")
    times = [want // have if i == axis else 1 for i in range(value.ndim)]
    return np.tile(value, times) / (want // have if inputs else 1)


# Ends of each network: path of the layer -> True if its inputs are widened, False if its outputs are.
_ENDS = {
    "diffusion": {"conv_in": True, "conv_out": False},
    "mel_vae": {"encoder/conv_in": True, "decoder/conv_out": False},
    "stft_vae": {"encoder/conv_in": True, "decoder/conv_out": False},
    "text_encoder": {},
}
TASKS = tuple(_ENDS)
_UNUSED = {"text_encoder": r"decoder\..*|lm_head\..*|encoder\.embed_tokens\..*"}


def convert(
    config: ConfigDict, task: str, abstract: Any, source: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Any:
    """Return parameters of a task from a reference model's; None for those that start fresh.

    Args:
      abstract: tree of the task's parameters, with shapes.
      source, tensors: from `read_folder`.

    Raises:
      ValueError: the source is another architecture than `config`, with the fields that differ, or lacks a tensor, or
        has one that nothing here uses.
    """
    check_source(config, task, source)
    rename: Callable[[str], str | None] = {
        "diffusion": lambda path: _unet_name(path, len(config.unet.channels)),
        "mel_vae": lambda path: _vae_name(path, len(config.mel_vae.channels)),
        "stft_vae": lambda path: _vae_name(path, len(config.stft_vae.channels)),
        "text_encoder": _t5_name,
    }[task]
    unused = {name for name in tensors if not re.fullmatch(_UNUSED.get(task, ""), name)}

    def one(path, x):
        *parents, leaf = [key.key for key in path]
        layer = "/".join(parents) or leaf
        module = rename(layer)
        if module is None:
            return None
        name = f"{module}.{'bias' if leaf == 'bias' else 'weight'}"
        for new, old in _OLDER.items():
            if name not in tensors and name.replace(new, old) in tensors:
                name = name.replace(new, old)
        if name not in tensors:
            raise ValueError(f"source lacks {name}, which {'/'.join([*parents, leaf])} needs")
        unused.discard(name)
        value = _axes(tensors[name], leaf, len(x.shape))
        if layer in _ENDS[task] and value.shape != x.shape:
            inputs = _ENDS[task][layer]
            if not (inputs and leaf == "bias"):
                try:
                    value = widen(value, x.shape, inputs=inputs, repeat=task != "diffusion")
                except ValueError as e:
                    raise ValueError(f"source tensor {name}: {e}") from e
        if value.shape != x.shape:
            raise ValueError(f"source tensor {name}: shape {value.shape}, the config needs {x.shape}")
        return value

    params = jax.tree_util.tree_map_with_path(one, abstract)
    if unused:
        shown = ", ".join(sorted(unused)[:5])
        raise ValueError(f"source has {len(unused)} tensors that the config's network does not have, such as {shown}")
    return params


# Every field of a config.json that changes the output, with the library's default, which one that is left out has.
_DEFAULTS = {
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "only_cross_attention": False,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "attention_head_dim": 8,
        "num_attention_heads": None,
        "dual_cross_attention": False,
        "class_embed_type": None,
        "addition_embed_type": None,
        "num_class_embeds": None,
        "resnet_time_scale_shift": "default",
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
        "mid_block_only_cross_attention": None,
        "cross_attention_norm": None,
    },
    "AutoencoderKL": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [64],
        "layers_per_block": 1,
        "act_fn": "silu",
        "latent_channels": 4,
        "norm_num_groups": 32,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
    "T5EncoderModel": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "dense_act_fn": "gelu_new",  # this and the next one follow from the last, unless they are there
        "is_gated_act": True,
        "is_decoder": False,
    },
    "Scheduler": {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    },
}


def check_source(config: ConfigDict, task: str, source: dict[str, Any]) -> None:
    """Compare a reference model's config.json with ours.

    Raises:
      ValueError: naming each field that differs, or the one of ours that must be another for any reference.
    """
    kind = {"diffusion": "UNet2DConditionModel", "text_encoder": "T5EncoderModel"}.get(task, "AutoencoderKL")
    found, expected = _DEFAULTS[kind] | {"_class_name": kind} | source, _DEFAULTS[kind] | {"_class_name": kind}
    if task == "diffusion":
        u, attention = config.unet, list(config.unet.attention)
        if tuple(u.patch) != (1, 1):
            raise ValueError(f"config.unet.patch = {u.patch}: must be (1, 1) for public weights")
        mel, both = config.mel_vae.latent_channels, config.mel_vae.latent_channels + config.stft_vae.latent_channels
        channels = both if found["in_channels"] == both else mel
        blocks = lambda side, flags: [f"CrossAttn{side}Block2D" if flag else f"{side}Block2D" for flag in flags]
        expected |= {
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": list(u.channels),
            "layers_per_block": u.layers_per_block,
            "cross_attention_dim": config.text.d_model,
            "norm_num_groups": u.norm_groups,
            "down_block_types": blocks("Down", attention),
            "up_block_types": blocks("Up", attention[::-1]),
            "attention heads": [width // u.head_dim for width in u.channels],
        }
        # diffusers counts heads in `attention_head_dim` unless `num_attention_heads` is there.
        counted = found["num_attention_heads"] or found["attention_head_dim"]
        found["attention heads"] = counted if isinstance(counted, list) else [counted] * len(u.channels)
        del expected["num_attention_heads"], expected["attention_head_dim"]
        found["mid_block_only_cross_attention"] = found["mid_block_only_cross_attention"] or None  # False, too, is off
    elif task in ("mel_vae", "stft_vae"):
        v = config[task]
        if task == "mel_vae" and tuple(v.patch) != (1, 1):
            raise ValueError(f"config.mel_vae.patch = {v.patch}: must be (1, 1) for public weights")
        if any(tuple(stride) != (2, 2) for stride in v.strides):
            raise ValueError(f"config.{task}.strides = {v.strides}: public weights halve both axes at each level")
        channels = v.in_channels if found["in_channels"] == v.in_channels else 1
        expected |= {
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": list(v.channels),
            "layers_per_block": v.layers_per_block,
            "latent_channels": v.latent_channels,
            "norm_num_groups": v.norm_groups,
            "down_block_types": ["DownEncoderBlock2D"] * len(v.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(v.channels),
            "mid_block_add_attention": v.mid_attention,
        }
    else:
        t = config.text
        expected |= {name: t[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
        expected["relative_attention_num_buckets"] = t.relative_buckets
        expected["relative_attention_max_distance"] = t.relative_max_distance
        expected["feed_forward_proj"] = "gated-gelu"
    wrong = _differences(found, expected)
    if wrong:
        raise ValueError(f"source is another architecture than config's {task}: {wrong}")


def check_scheduler(config: ConfigDict, folder: str | Path) -> None:
    """Compare the scheduler of the pipeline that a U-Net's folder is part of, if it is, with `config.diffusion`.

    Under another prediction or schedule the weights would start as noise. To start from them all the same, copy the
    U-Net's folder away from its scheduler.

    Raises:
      ValueError: naming each field that differs.
    """
    path = Path(folder).absolute().parent / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return
    d = config.diffusion
    expected = _DEFAULTS["Scheduler"] | {
        "num_train_timesteps": d.num_steps,
        "beta_schedule": {"scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}[d.schedule],
        "prediction_type": {"v": "v_prediction", "eps": "epsilon"}[d.prediction],
    }
    found = _DEFAULTS["Scheduler"] | _read_object(path)
    # The cosine schedule has no ends.
    ends = {"beta_start": 0.00085, "beta_end": 0.012}
    expected |= ends if d.schedule == "scaled_linear" else {name: found[name] for name in ends}
    wrong = _differences(found, expected)
    if wrong:
        rule = "set config.diffusion.prediction, schedule and num_steps, or give a copy of the folder without it"
        raise ValueError(f"source has another scheduler, {str(path)!r}: {wrong}; {rule}")


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    def same(x, y):  # a list of one value for each level is that value
        return x == y or (isinstance(x, list) and bool(x) and all(item == y for item in x))

    pairs = [(name, found[name], value) for name, value in expected.items()]
    return "; ".join(f"{name}: source {x!r}, config needs {y!r}" for name, x, y in pairs if not same(x, y))
