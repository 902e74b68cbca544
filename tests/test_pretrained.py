"""Against the reference implementations, on random weights that our converter read from their own folders.

Needs the extra `parity` (torch, diffusers, transformers); the tests that need none of them are at the end.
"""

import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tiny import tiny_config, tiny_tokenizer

from dualspec_jax import networks, pretrained, pretrained_source
from dualspec_jax.checkpoint import latest_step, load_params
from dualspec_jax.convert import convert_to_checkpoint
from dualspec_jax.diffusion.schedule import make_alpha_bar
from dualspec_jax.diffusion.solvers import sample_latent, trailing_timesteps
from dualspec_jax.scene_source import known_labels
from dualspec_jax.tasks import make_model

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e-3  # max abs error that is allowed; the measured ones are in README.md


def need(*names):
    """Import torch and a reference library, whose own warnings are not ours, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        module = pytest.importorskip(names[0])
        return torch, *(getattr(module, name) for name in names[1:])


def perturbed(torch, model):
    """Move every weight away from its initial value, so that norms are no identities and biases are not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


def channels_first(torch, x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def converted(config, task, folder):
    model = make_model(config, task)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return pretrained.convert(config, task, abstract, *pretrained.read_folder(folder))


def report(name, ours, theirs):
    error = float(np.max(np.abs(np.asarray(ours) - theirs)))
    print(f"{name}: max abs error {error:.2e}, max abs {np.max(np.abs(theirs)):.2f}")
    assert ours.shape == theirs.shape and np.std(theirs) > 0.01
    assert error < LIMIT


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    c = tiny_config()
    c.unet.update(patch=(1, 1), channels=(16, 32, 32), layers_per_block=1, attention=(True, True, False), head_dim=8)
    c.unet.update(norm_groups=8, freq_embedding=False, pooled_text=False, azimuth_token=False)
    for vae in (c.mel_vae, c.stft_vae):
        vae.update(patch=(1, 1), channels=(8, 16), strides=((2, 2),), layers_per_block=2, mid_attention=True)
        vae.update(input_mean=(0.0,) * vae.in_channels, input_std=(1.0,) * vae.in_channels)
    return c


def reference_unet(config, folder, in_channels):
    torch, model_class = need("diffusers", "UNet2DConditionModel")
    torch.manual_seed(0)
    u = config.unet
    model = model_class(
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=tuple(u.channels),
        layers_per_block=u.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=config.text.d_model,
        attention_head_dim=tuple(width // u.head_dim for width in u.channels),
        norm_num_groups=u.norm_groups,
        use_linear_projection=True,
    )
    model = perturbed(torch, model)
    model.save_pretrained(folder)
    return torch, model


def unet_inputs(config, channels):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 4, channels), np.float32)
    text = rng.standard_normal((2, 5, config.text.d_model), np.float32)
    return x, np.array([7, 801]), text, np.arange(5) < np.array([[3], [5]])


def apply_unet(config, params, x, t, text, mask):
    zero = jnp.zeros(len(x))
    unet = networks.make_unet(config.unet)
    return jax.jit(unet.apply)({"params": params}, x, t, text, mask, zero, zero > 0)


def test_unet_is_that_of_diffusers_and_widening_keeps_the_first_latents(config, tmp_path):
    have = networks.latent_shape(config)[-1] // 2
    torch, model = reference_unet(config, tmp_path / "unet", have)
    x, t, text, mask = unet_inputs(config, 2 * have)
    with torch.no_grad():
        theirs = model(
            channels_first(torch, x[..., :have]),
            torch.from_numpy(t),
            torch.from_numpy(text),
            encoder_attention_mask=torch.from_numpy(mask),
        ).sample
    params = converted(config, "diffusion", tmp_path / "unet")
    wide = apply_unet(config, params, x, t, text, mask)
    report("U-Net", wide[..., :have], channels_last(theirs))
    np.testing.assert_array_equal(wide[..., have:], 0.0)
    config = config.copy_and_resolve_references()
    config.unet.condition_rows = True
    assert converted(config, "diffusion", tmp_path / "unet")["condition_rows"] == {"kernel": None, "bias": None}


@pytest.mark.slow
def test_every_weight_of_a_widened_unet_has_a_gradient(config, tmp_path):
    have = networks.latent_shape(config)[-1] // 2
    reference_unet(config, tmp_path / "unet", have)
    params = converted(config, "diffusion", tmp_path / "unet")
    inputs = unet_inputs(config, 2 * have)
    gradient = jax.grad(lambda p: jnp.sum((apply_unet(config, p, *inputs) - 1.0) ** 2))(params)
    assert np.abs(gradient["conv_in"]["kernel"]).min() > 0 and np.abs(gradient["conv_out"]["kernel"]).min() > 0


def test_speed_is_compared_on_equal_weights(tmp_path):
    need("diffusers", "UNet2DConditionModel")
    experiment, out = tmp_path / "tiny_experiment.py", tmp_path / "speed.json"
    lines = ("import tiny", "def get_config():", "    config = tiny.tiny_config()")
    lines += ("    config.unet.condition_rows = True", "    return config")  # as configs/embedded.py has them
    experiment.write_text("\n".join(lines) + "\n")
    script = ROOT / "benchmarks" / "unet_speed.py"
    command = [sys.executable, script, f"--config={experiment}", "--batch=2", "--repeats=1", f"--out={out}"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["max_abs_difference"] < LIMIT
    names = {f"{library} {dtype}" for library in ("jax", "torch") for dtype in ("float32", "bfloat16")}
    assert {kind: set(times) for kind, times in found["times"].items()} == {"train": names, "guided": names}
    for times in found["times"].values():
        for row in times.values():
            assert row["speedup"] == pytest.approx(times["torch float32"]["median"] / row["median"])


def test_vae_is_that_of_diffusers_with_equal_ears(config, tmp_path):
    torch, model_class = need("diffusers", "AutoencoderKL")
    torch.manual_seed(0)
    v = config.mel_vae
    levels = len(v.channels)
    model = model_class(
        in_channels=1,
        out_channels=1,
        block_out_channels=tuple(v.channels),
        layers_per_block=v.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=v.latent_channels,
        norm_num_groups=v.norm_groups,
    )
    model = perturbed(torch, model)
    model.save_pretrained(tmp_path / "vae")
    params = {"params": converted(config, "mel_vae", tmp_path / "vae")}
    mono = np.random.default_rng(0).standard_normal((2, 16, 8, 1), np.float32)
    with torch.no_grad():
        posterior = model.encode(channels_first(torch, mono)).latent_dist
        output = channels_last(model.decode(posterior.mean).sample)
    vae = networks.make_vae(v)

    def both(params, x, z):
        return (*vae.apply(params, x, method="encode"), vae.apply(params, z, method="decode"))

    z = channels_last(posterior.mean)
    mu, logvar, ears = jax.jit(both)(params, np.repeat(mono, 2, axis=-1), z)
    report("VAE encoder, mean", mu, z)
    report("VAE encoder, log-variance", logvar, channels_last(posterior.logvar))
    report("VAE decoder", ears[..., :1], output)
    np.testing.assert_array_equal(ears[..., 0], ears[..., 1])


def test_text_encoder_is_that_of_transformers_and_starts_a_workdir(config, tmp_path):
    torch, model_class, config_class = need("transformers", "T5EncoderModel", "T5Config")
    torch.manual_seed(0)
    t = config.text
    fields = {name: t[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
    model = perturbed(torch, model_class(config_class(**fields, feed_forward_proj="gated-gelu")))
    source = tmp_path / "t5"
    model.save_pretrained(source)
    tiny_tokenizer(config).backend.save(str(source / "tokenizer.json"))
    ids = np.random.default_rng(0).integers(3, t.vocab_size, (2, t.max_length)).astype(np.int32)
    mask = np.arange(t.max_length) < np.array([[9], [t.max_length]])
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    labels = tmp_path / "work" / "tfds" / config.data.dataset.replace(":", "/") / "label_index.labels.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("espresso machine\n")  # a data set with a label of its own
    number, fresh = convert_to_checkpoint(config, "text_encoder", source, tmp_path / "work")
    params, _ = load_params(tmp_path / "work" / "text_encoder")
    ours = jax.jit(networks.make_text_encoder(t).apply)({"params": params["encoder"]}, ids, mask)
    report("T5 encoder", np.asarray(ours)[mask], theirs[mask])
    assert params["heads"]["label"]["bias"].size == len(known_labels(config, tmp_path / "work" / "tfds"))
    assert params["heads"]["label"]["bias"].size > len(known_labels(config, tmp_path / "none"))
    assert number == sum(p.numel() for p in model.parameters()) and fresh > 0
    assert latest_step(tmp_path / "work" / "text_encoder") == 0 and (tmp_path / "work" / "tokenizer.json").exists()
    with pytest.raises(ValueError, match="has a checkpoint of text_encoder already"):
        convert_to_checkpoint(config, "text_encoder", source, tmp_path / "work")
    other = config.copy_and_resolve_references()
    other.text.num_heads = 1
    with pytest.raises(ValueError, match="num_heads: source 2, config needs 1"):
        convert_to_checkpoint(other, "text_encoder", source, tmp_path / "other")
    other = config.copy_and_resolve_references()
    other.text.vocab_size = 400
    with pytest.raises(ValueError, match=r"text\.vocab_size = 400: the source's tokenizer\.json has"):
        convert_to_checkpoint(other, "text_encoder", source, tmp_path / "other")
    other = config.copy_and_resolve_references()
    other.text.event_codes = 300
    encoder = converted(other, "text_encoder", source)["encoder"]
    assert encoder["event_table"] is None and encoder["event"] == {"kernel": None, "bias": None}
    (source / "tokenizer.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        convert_to_checkpoint(config, "text_encoder", source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("prediction", ["v", "eps"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 7, 10, 50])
def test_ddim_is_that_of_diffusers(steps, eta, prediction):
    torch, scheduler_class = need("diffusers", "DDIMScheduler")
    scheduler = scheduler_class(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type={"v": "v_prediction", "eps": "epsilon"}[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(scheduler.timesteps, trailing_timesteps(1000, steps))
    noise = jax.random.normal(jax.random.key(0), (2, 4, 3, 2))
    keys = jax.random.split(jax.random.key(1), 2)
    denoiser = lambda x, t: 0.6 * x + 0.1 * (t / 1000.0)
    x = torch.from_numpy(np.array(noise))
    for index, t in enumerate(scheduler.timesteps):
        fresh = jax.vmap(lambda key, i=index: jax.random.normal(jax.random.fold_in(key, i), noise.shape[1:]))(keys)
        fresh = torch.from_numpy(np.array(fresh)) if eta else None
        if 1000 % steps:  # it goes to t - 1000 // steps, which is not its next timestep then
            after = scheduler.timesteps[index + 1] if index + 1 < steps else -1
            scheduler.register_to_config(num_train_timesteps=int(t - after) * steps)
        x = scheduler.step(denoiser(x, t), t, x, eta=eta, variance_noise=fresh).prev_sample
    batched = lambda x, t: denoiser(x, t[:, None, None, None])
    alpha_bar = make_alpha_bar("scaled_linear", 1000)
    ours = sample_latent(batched, noise, keys, alpha_bar, steps=steps, eta=eta, prediction=prediction)
    report(f"DDIM, {steps} steps, eta {eta:g}, {prediction}", ours, x.numpy())


def test_widening_by_repeats_keeps_the_sum_over_equal_inputs():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 5))
    wide = pretrained.widen(kernel, (3, 3, 6, 5), inputs=True, repeat=True)
    x = np.array([1.0, -2.0])
    np.testing.assert_allclose(np.tile(x, 3) @ wide, x @ kernel)
    out = pretrained.widen(kernel, (3, 3, 2, 10), inputs=False, repeat=True)
    np.testing.assert_array_equal(out[..., 5:], kernel)
    zeros = pretrained.widen(kernel, (3, 3, 3, 5), inputs=True, repeat=False)
    np.testing.assert_array_equal(zeros[:, :, :2], kernel)
    np.testing.assert_array_equal(zeros[:, :, 2], 0.0)


@pytest.mark.parametrize(
    ("shape", "repeat", "message"),
    [
        ((3, 3, 1, 5), False, "cannot be widened"),
        ((3, 3, 4, 6), True, "cannot be widened"),
        ((3, 3, 3, 5), True, "multiple of 2"),
    ],
)
def test_widening_refuses_what_does_not_fit(shape, repeat, message):
    with pytest.raises(ValueError, match=message):
        pretrained.widen(np.zeros((3, 3, 2, 5)), shape, inputs=True, repeat=repeat)


def test_widening_error_names_the_tensor(config):
    source = {"in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 4}
    source |= {"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2}
    source |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    model = make_model(config, "mel_vae")
    abstract = {"encoder": {"conv_in": jax.eval_shape(model.init, jax.random.key(0))["encoder"]["conv_in"]}}
    tensors = {"encoder.conv_in.weight": np.ones((8, 3, 3, 3)), "encoder.conv_in.bias": np.ones(8)}
    with pytest.raises(ValueError, match=r"source tensor encoder\.conv_in\.weight: shape = "):
        pretrained.convert(config, "mel_vae", abstract, source, tensors)


def test_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        pretrained.read_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="save pickled weights again"):
        pretrained.read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        pretrained.read_folder(tmp_path)


@pytest.mark.parametrize("content", [b"{broken", b'{"a": "\xe9"}', b"[]"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"source file .*config\.json': (not JSON|must be a JSON object)"):
        pretrained.read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"source file .*index\.json'"):
        pretrained.read_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json': weight_map must name"):
        pretrained.read_folder(tmp_path)


def test_pipeline_names_its_folders_and_half_precision_is_read(tmp_path):
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"x": np.ones(2, np.float16)}, folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"no config\.json there; choose one of its folders vae"):
        pretrained.read_folder(tmp_path)
    _, tensors = pretrained.read_folder(folder)
    assert tensors["x"].dtype == np.float32 and tensors["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.array([1.0, np.nan], np.float32), "x: has values that are not finite"), (np.ones(2, np.int8), "x: int8")],
)
def test_tensor_that_is_no_weight_is_named(tmp_path, value, message):
    (tmp_path / "config.json").write_text("{}")
    save_file({"x": value}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"source tensor {message}"):
        pretrained.read_folder(tmp_path)


@pytest.mark.parametrize("task", ["vocoder", "reader", "mel_decoder", "nope"])
def test_task_without_public_weights_is_refused(config, tmp_path, task):
    with pytest.raises(ValueError, match="must be one of diffusion, mel_vae, stft_vae, text_encoder"):
        convert_to_checkpoint(config, task, tmp_path, tmp_path / "work")


# Fields that change nothing, only training, or nothing without another one that is compared; and those of a wrong width
# are found by the tensors' shapes.
HARMLESS = {
    *("sample_size", "dropout", "use_linear_projection", "upcast_attention", "addition_time_embed_dim"),
    *("time_embedding_dim", "projection_class_embeddings_input_dim", "class_embeddings_concat"),
    *("addition_embed_type_num_heads", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"),
}


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler"])
def test_defaults_are_those_of_diffusers(name):
    _, model_class = need("diffusers", name)
    theirs = {key: p.default for key, p in inspect.signature(model_class).parameters.items()}
    theirs = json.loads(json.dumps(theirs))
    ours = pretrained_source._DEFAULTS["Scheduler" if "Scheduler" in name else name]
    assert {key: theirs[key] for key in ours} == ours
    if "Scheduler" not in name:
        assert set(theirs) == set(ours) | HARMLESS & set(theirs)


def test_defaults_are_those_of_transformers():
    _, config_class = need("transformers", "T5Config")
    ours = pretrained_source._DEFAULTS["T5EncoderModel"]
    theirs = config_class().to_dict()
    follow = ("dense_act_fn", "is_gated_act")
    assert {key: theirs[key] for key in ours if key not in follow} == {k: ours[k] for k in ours if k not in follow}
    gated = config_class(feed_forward_proj="gated-gelu")
    assert [getattr(gated, key) for key in follow] == [ours[key] for key in follow]


def fitting(config):
    """Return the fields of a U-Net's config.json that config needs and that are no defaults."""
    u, width = config.unet, config.mel_vae.latent_channels
    return {
        "in_channels": width,
        "out_channels": width,
        "block_out_channels": list(u.channels),
        "layers_per_block": [u.layers_per_block] * 3,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": [config.text.d_model] * 3,
        "transformer_layers_per_block": [1, 1, 1],
        "attention_head_dim": [2, 4, 4],
        "norm_num_groups": u.norm_groups,
    }


def test_equal_values_for_all_levels_are_one(config):
    pretrained_source.check_source(config, "diffusion", fitting(config))
    pretrained_source.check_source(config, "diffusion", fitting(config) | {"mid_block_only_cross_attention": False})
    with pytest.raises(ValueError, match=r"layers_per_block: source \[1, 2, 1\]"):
        pretrained_source.check_source(config, "diffusion", fitting(config) | {"layers_per_block": [1, 2, 1]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("_class_name", "AutoencoderKL"), ("center_input_sample", True), ("mid_block_scale_factor", 2.0)),
        *(("only_cross_attention", True), ("time_embedding_act_fn", "silu"), ("timestep_post_act", "silu")),
        *(("time_embedding_type", "fourier"), ("dual_cross_attention", True), ("downsample_padding", 0)),
        *(("conv_in_kernel", 5), ("encoder_hid_dim", 8), ("in_channels", 3), ("out_channels", 8)),
        *(("attention_head_dim", None), ("norm_num_groups", None)),
    ],
)
def test_field_that_changes_the_output_is_refused(config, field, value):
    source = fitting(config) | {field: value}
    if value is None:  # left out: the library's default
        del source[field]
    name = {"attention_head_dim": "attention heads"}.get(field, field)
    with pytest.raises(ValueError, match=f"config's diffusion: {name}: source [^;]*$"):
        pretrained_source.check_source(config, "diffusion", source)


@pytest.mark.parametrize(("task", "field"), [("diffusion", "unet"), ("mel_vae", "mel_vae")])
def test_patch_is_refused(config, task, field):
    config = config.copy_and_resolve_references()
    config[field].patch = (2, 2)
    with pytest.raises(ValueError, match=rf"config\.{field}\.patch = \(2, 2\): must be \(1, 1\)"):
        pretrained_source.check_source(config, task, {})


def test_scheduler_beside_the_unet_must_fit(config, tmp_path):
    pretrained_source.check_scheduler(config, tmp_path / "unet")  # none there
    (tmp_path / "scheduler").mkdir()
    config = config.copy_and_resolve_references()
    config.diffusion.update(schedule="scaled_linear", prediction="eps")
    fits = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(fits))
    pretrained_source.check_scheduler(config, tmp_path / "unet")
    config.diffusion.prediction = "v"
    with pytest.raises(ValueError, match="prediction_type: source 'epsilon', config needs 'v_prediction'; set config"):
        pretrained_source.check_scheduler(config, tmp_path / "unet")
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"beta_start: source 0\.0001.*beta_schedule: source 'linear'"):
        convert_to_checkpoint(config, "diffusion", tmp_path / "unet", tmp_path / "work")
    file.write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}))
    config.diffusion.schedule = "cosine"
    pretrained_source.check_scheduler(config, tmp_path / "unet")


@pytest.mark.parametrize(
    ("task", "source", "message"),
    [
        ("diffusion", {"block_out_channels": [8]}, r"block_out_channels: source \[8\], config needs \[16, 32, 32\]"),
        ("diffusion", {"attention_head_dim": 8}, r"attention heads: source \[8, 8, 8\], config needs \[2, 4, 4\]"),
        ("diffusion", {"class_embed_type": "simple_projection"}, "class_embed_type"),
        ("mel_vae", {"latent_channels": 3}, "latent_channels: source 3, config needs 4"),
        ("mel_vae", {}, "norm_num_groups: source 32, config needs 4"),
        ("mel_vae", {"in_channels": 1, "out_channels": 2}, "out_channels: source 2, config needs 1"),
        ("text_encoder", {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon: source 1e-05, config needs 1e-06"),
        ("text_encoder", {"dense_act_fn": "relu"}, "dense_act_fn"),
        ("text_encoder", {"feed_forward_proj": "relu"}, "feed_forward_proj"),
    ],
)
def test_source_of_another_architecture_names_the_field(config, task, source, message):
    with pytest.raises(ValueError, match=message):
        pretrained_source.check_source(config, task, source)
