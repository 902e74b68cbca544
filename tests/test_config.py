import pytest

from dualspec_jax.config import TASKS, branch_guidance, default
from dualspec_jax.config_rules import validate

BROKEN = [
    ("audio.n_samples", 81921, "multiple of hop_length"),
    ("audio.n_frames", 511, "n_samples // hop_length = 512"),
    ("audio.n_bins", 513, "n_fft // 2 = 512"),
    ("audio.fmax", 9000.0, "fmin < fmax <= sample_rate / 2"),
    ("data.crop_frames", 126, "multiple of 4"),
    ("mel_vae.strides", ((2, 2), (2, 2)), "one pair fewer than channels"),
    ("mel_vae.channels", (48, 97), "multiples of norm_groups 8"),
    ("stft_vae.strides", ((1, 2), (1, 4)), "same latent grid"),
    ("stft_vae.strides", ((1, 3), (1, 2)), "divide 512 bands"),
    ("unet.attention", (True, True), "one flag per level"),
    ("unet.patch", (2, 8), "divides the latent grid"),
    ("unet.channels", (96, 160, 250), "multiples of norm_groups 16"),
    ("unet.channels", (96, 160, 240), "multiples of head_dim 32"),
    ("diffusion.schedule", "linear", "cosine or scaled_linear"),
    ("diffusion.prediction", "x0", "v or eps"),
    ("diffusion.num_steps", 1, "at least 2"),
    ("diffusion.null_prob", 0.9, "at most 1"),
    ("diffusion.azimuth_token_prob", 1.5, r"in [0, 1]"),
    ("diffusion.words_dropped", 1.0, "in [0, 1)"),
    ("diffusion.words_dropped", 0.5, "0 without text.event_codes"),
    ("diffusion.static_weight", -1.0, "0 or more"),
    ("text.event_codes", 1, "0 or at least 2"),
    ("feeding.source", "disk", "features or render"),
    ("feeding.num_workers", -1, "0 or more"),
    ("feeding.mirror", 1.5, "in [0, 1]"),
    ("feeding.mix", (("a/b:1.0.0", 0.0),), "a positive weight"),
    ("sample.steps", 1001, "diffusion.num_steps = 1000"),
    ("sample.eta", -0.1, "in [0, 1]"),
    ("sampler.solver", "euler", "one of ddim, dpmpp_2m, unipc"),
    ("sampler.spacing", 0.5, "in [1, 4]"),
    ("sampler.direction_noise", -0.1, "in [0, 100]"),
    ("stft_decoder.loud_weight", -1.0, "0 or more"),
    ("reader.azimuths", 12, "at least 36"),
    ("reader.width", 4, "0 or an odd number"),
    ("event_guide.channels", (64, 100), "multiples of norm_groups 8"),
    ("event_guide.mixing", 0.5, "in [0, 0.5)"),
    ("event_guide.latent_noise", -0.1, "0 or more"),
    ("event_guide.hidden", 0, "at least 1"),
    ("event_guide.dropout", 1.0, "in [0, 1)"),
    ("listener.channels", (32, 60), "multiples of norm_groups 8"),
    ("listener.pool", 3, "divides 512"),
    ("listener.augment", 1.0, "in [0, 1)"),
    ("sampler.accept", 1.5, "in [0, 1]"),
    ("sampler.event_guidance", -1.0, "in [0, 10]"),
    ("sampler.tries", 0, "in [1, 100]"),
    ("unet.head_dim", 0, "at least 1"),
    ("stft_vae.norm_groups", 0, "at least 1"),
    ("seed", -1, "in [0, 2^31)"),
    ("seed", 2**31, "in [0, 2^31)"),
    ("data.label_cap", -1, "at least 0"),
    ("data.num_threads", -1, "at least 0"),
    ("data.prefetch", -1, "at least 0"),
    ("diffusion.min_snr_gamma", 0.0, "None or positive"),
    ("data.label_factors", (("tabla", 0.0),), "a positive factor"),
    ("sampler.guidance_interval", (0.9, 0.1), "rising and in [0, 1]"),
    ("train.mel_vae.batch_size", 0, "at least 1"),
    ("train.diffusion.steps", 0, "at least 1"),
    ("train.stft_vae.lr", 0.0, "positive"),
    ("train.diffusion.lr", float("inf"), "finite"),
    ("train.mel_vae.grad_clip", 0.0, "positive"),
    ("train.mel_vae.b1", 1.0, "in [0, 1)"),
    ("train.mel_vae.b2", 1.5, "in [0, 1)"),
    ("train.reader.warmup_steps", -5, "0 or more"),
    ("train.reader.weight_decay", -1.0, "0 or more"),
    ("train.mel_vae.final_lr_ratio", -3.0, "in [0, 1]"),
    ("train.classifier.ema_decay", 1.0, "in [0, 1)"),
    ("train.text_encoder.save_every", 0, "at least 1"),
    ("train.diffusion.accumulate", 3, "divides train.diffusion.batch_size = 16"),
    ("train.text_encoder.accumulate", 2, "1: its loss is a mean over the captions"),
    ("train.diffusion.dtype", "float16", "float32 or bfloat16"),
    ("train.classifier.dtype", "bfloat16", "this network has no other"),
    ("train.text_encoder.remat", True, "not rematerialised"),
    ("mesh.fsdp", 0, "at least 1"),
    ("mesh.data", 0, "None or at least 1"),
]


def test_default_is_valid():
    validate(default())


@pytest.mark.parametrize(("field", "value", "rule"), BROKEN)
def test_an_error_names_field_value_and_rule(field, value, rule):
    config = default()
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = section[part]
    assert name in section
    section[name] = value
    with pytest.raises(ValueError) as info:
        validate(config)
    message = str(info.value)
    assert message.startswith(f"config.{field} = ")
    assert rule in message
    if "same latent grid" not in rule:  # that one shows the two grids
        assert repr(value) in message


def test_rendering_needs_a_bank_and_takes_no_mixture():
    config = default()
    config.feeding.source = "render"
    with pytest.raises(ValueError, match="config.feeding.clip_bank = ''"):
        validate(config)
    config.feeding.clip_bank = "bank"
    validate(config)
    config.feeding.mix = (("a/b:1.0.0", 1.0),)
    with pytest.raises(ValueError, match="only for feeding.source = features"):
        validate(config)


def test_bundles_from_before_feeding_are_valid():
    config = default().unlock()
    del config.feeding
    validate(config)


def test_each_task_has_training_settings():
    assert set(default().train) == set(TASKS)


def test_each_call_returns_its_own_config():
    first = default()
    first.sample.steps = 3
    assert default().sample.steps != 3


def test_sampling_noise_needs_ddim():
    config = default()
    config.sample.eta, config.sampler.solver = 0.5, "unipc"
    with pytest.raises(ValueError, match="config.sample.eta = 0.5: .* unipc"):
        validate(config)


def test_guidance_of_one_number_and_two():
    assert branch_guidance(5.0) == (5.0, 3.0) and branch_guidance(2) == (2.0, 2.0)
    assert branch_guidance((1.0, 7.0)) == (1.0, 7.0)
    for scale in (-1.0, 101.0, float("nan"), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="guidance_scale"):
            branch_guidance(scale)
