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

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualspec_jax.pretrained_source import check_source, read_object

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
    config = read_object(folder / "config.json")
    indices = [folder / f"{name}.index.json" for name in _NAMES if (folder / f"{name}.index.json").is_file()]
    if indices:
        weight_map = read_object(indices[0]).get("weight_map")
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
