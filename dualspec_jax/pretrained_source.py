"""Compare a source of public weights with the experiment that it is to start: its config.json, its scheduler."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

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
    found = _DEFAULTS["Scheduler"] | read_object(path)
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


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
      ValueError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as e:  # of the encoding or of JSON
        raise ValueError(f"source file {str(path)!r}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise ValueError(f"source file {str(path)!r}: must be a JSON object, not {type(value).__name__}")
    return value
