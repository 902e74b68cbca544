"""Check a config before any device is touched."""

import math

from ml_collections import ConfigDict

from dualspec_jax.config import MAX_DIRECTION_NOISE, MAX_EVENT_GUIDANCE, MAX_SPACING, MAX_TRIES, SOLVERS, TASKS


def validate(config: ConfigDict) -> None:
    """Check relations between fields.

    Raises:
      ValueError: naming the field, its value and the rule it breaks.
    """
    a = config.audio

    def need(ok: bool, field: str, value, rule: str) -> None:
        if not ok:
            raise ValueError(f"config.{field} = {value!r}: {rule}")

    need(
        a.n_samples > 0 and a.n_samples % a.hop_length == 0, "audio.n_samples", a.n_samples, "a multiple of hop_length"
    )
    need(
        a.n_frames == a.n_samples // a.hop_length,
        "audio.n_frames",
        a.n_frames,
        f"n_samples // hop_length = {a.n_samples // a.hop_length}",
    )
    need(0 <= config.seed < 2**31, "seed", config.seed, "in [0, 2^31)")
    for field in ("label_cap", "num_threads", "prefetch"):
        need(config.data[field] >= 0, f"data.{field}", config.data[field], "at least 0")
    need(
        _named_weights(config.data.label_factors),
        "data.label_factors",
        config.data.label_factors,
        "pairs of a label and a positive factor",
    )
    need(a.n_bins == a.n_fft // 2, "audio.n_bins", a.n_bins, f"n_fft // 2 = {a.n_fft // 2} (Nyquist is dropped)")
    need(0 <= a.fmin < a.fmax <= a.sample_rate / 2, "audio.fmax", a.fmax, "fmin < fmax <= sample_rate / 2")
    for section in ("mel_vae", "stft_vae", "unet"):
        need(config[section].norm_groups >= 1, f"{section}.norm_groups", config[section].norm_groups, "at least 1")
    grids = {}
    for name, width in (("mel_vae", a.n_mels), ("stft_vae", a.n_bins)):
        v = config[name]
        need(len(v.strides) == len(v.channels) - 1, f"{name}.strides", v.strides, "one pair fewer than channels")
        down_t = v.patch[0] * math.prod(s[0] for s in v.strides)
        down_f = v.patch[1] * math.prod(s[1] for s in v.strides)
        need(a.n_frames % down_t == 0, f"{name}.strides", v.strides, f"patch and strides divide {a.n_frames} frames")
        need(width % down_f == 0, f"{name}.strides", v.strides, f"patch and strides divide {width} bands")
        need(
            config.data.crop_frames % down_t == 0,
            "data.crop_frames",
            config.data.crop_frames,
            f"a multiple of {down_t}, the time stride of {name}",
        )
        for ch in v.channels:
            need(ch % v.norm_groups == 0, f"{name}.channels", v.channels, f"multiples of norm_groups {v.norm_groups}")
        grids[name] = (a.n_frames // down_t, width // down_f)
    need(grids["mel_vae"] == grids["stft_vae"], "stft_vae.strides", grids, "both VAEs end on the same latent grid")
    if "feeding" in config:  # bundles and checkpoints from before it have none
        _validate_feeding(config.feeding, need)
    u = config.unet
    need(len(u.attention) == len(u.channels), "unet.attention", u.attention, "one flag per level of channels")
    scale = 2 ** (len(u.channels) - 1)
    for size, patch in zip(grids["mel_vae"], u.patch, strict=True):
        need(
            size % (patch * scale) == 0,
            "unet.patch",
            u.patch,
            f"patch * {scale} divides the latent grid {grids['mel_vae']}",
        )
    need(u.head_dim >= 1, "unet.head_dim", u.head_dim, "at least 1")
    for ch in u.channels:
        need(ch % u.norm_groups == 0, "unet.channels", u.channels, f"multiples of norm_groups {u.norm_groups}")
        need(ch % u.head_dim == 0, "unet.channels", u.channels, f"multiples of head_dim {u.head_dim}")
    for field in ("adversarial_weight", "feature_weight", "latent_noise") if "mel_decoder" in config else ():
        need(config.mel_decoder[field] >= 0, f"mel_decoder.{field}", config.mel_decoder[field], "0 or more")
    for field in ("loud_weight", "latent_noise") if "stft_decoder" in config else ():
        need(config.stft_decoder[field] >= 0, f"stft_decoder.{field}", config.stft_decoder[field], "0 or more")
    for field in ("stft_weight", "adversarial_weight", "feature_weight", "mel_iters") if "vocoder" in config else ():
        need(config.vocoder[field] >= 0, f"vocoder.{field}", config.vocoder[field], "0 or more")
    for field in ("channels", "layers", "hidden") if "vocoder" in config else ():
        need(config.vocoder[field] >= 1, f"vocoder.{field}", config.vocoder[field], "at least 1")
    for field in ("dropout", "augment"):
        need(0 <= config.classifier[field] < 1, f"classifier.{field}", config.classifier[field], "in [0, 1)")
    need(a.n_frames % config.classifier.pool == 0, "classifier.pool", config.classifier.pool, f"divides {a.n_frames}")
    need(config.localiser.azimuths >= 36, "localiser.azimuths", config.localiser.azimuths, "at least 36")
    need(0 <= config.localiser.dropout < 1, "localiser.dropout", config.localiser.dropout, "in [0, 1)")
    need(config.localiser.label_std_deg > 0, "localiser.label_std_deg", config.localiser.label_std_deg, "positive")
    for field, low in (("azimuths", 36), ("queries", 1), ("hidden", 1)) if "reader" in config else ():
        need(config.reader[field] >= low, f"reader.{field}", config.reader[field], f"at least {low}")
    width = config.reader.get("width", 0) if "reader" in config else 0
    need(width == 0 or (width > 0 and width % 2 == 1), "reader.width", width, "0 or an odd number")
    for name in ("event_guide", "listener"):
        if name not in config:
            continue
        r = config[name]
        for ch in r.channels:
            need(ch % r.norm_groups == 0, f"{name}.channels", r.channels, f"multiples of norm_groups {r.norm_groups}")
        need(r.hidden >= 1, f"{name}.hidden", r.hidden, "at least 1")
        need(0 <= r.dropout < 1, f"{name}.dropout", r.dropout, "in [0, 1)")
        need(0 <= r.mixing < 0.5, f"{name}.mixing", r.mixing, "in [0, 0.5)")
    if "event_guide" in config:
        noise = config.event_guide.latent_noise
        need(noise >= 0, "event_guide.latent_noise", noise, "0 or more")
    if "listener" in config:
        pool, augment = config.listener.pool, config.listener.augment
        need(pool >= 1 and a.n_frames % pool == 0, "listener.pool", pool, f"divides {a.n_frames}")
        need(0 <= augment < 1, "listener.augment", augment, "in [0, 1)")
    d = config.diffusion
    need(d.schedule in ("cosine", "scaled_linear"), "diffusion.schedule", d.schedule, "cosine or scaled_linear")
    need(d.prediction in ("v", "eps"), "diffusion.prediction", d.prediction, "v or eps")
    gamma = d.min_snr_gamma
    need(gamma is None or gamma > 0, "diffusion.min_snr_gamma", gamma, "None or positive")
    need(d.num_steps >= 2, "diffusion.num_steps", d.num_steps, "at least 2")
    drops = d.null_prob + d.direction_free_prob + d.event_free_prob
    need(0 <= drops <= 1, "diffusion.null_prob", d.null_prob, "null, direction-free and event-free add up to at most 1")
    need(0 <= d.azimuth_token_prob <= 1, "diffusion.azimuth_token_prob", d.azimuth_token_prob, "in [0, 1]")
    codes = config.text.event_codes
    need(codes == 0 or codes >= 2, "text.event_codes", codes, "0 or at least 2")
    need(0 <= d.words_dropped < 1, "diffusion.words_dropped", d.words_dropped, "in [0, 1)")
    need(d.words_dropped == 0 or codes, "diffusion.words_dropped", d.words_dropped, "0 without text.event_codes")
    need(d.static_weight >= 0, "diffusion.static_weight", d.static_weight, "0 or more")
    tolerance = d.get("word_tolerance_deg", 0.0)  # bundles from before it have none
    need(0 <= tolerance <= 22.5, "diffusion.word_tolerance_deg", tolerance, "in [0, 22.5]")
    s = config.sample
    need(1 <= s.steps <= d.num_steps, "sample.steps", s.steps, f"in [1, diffusion.num_steps = {d.num_steps}]")
    need(s.get("mel_iters", 0) >= 0, "sample.mel_iters", s.get("mel_iters", 0), "0 or more")
    need(0 <= s.eta <= 1, "sample.eta", s.eta, "in [0, 1]")
    m = config.mesh
    for field in ("fsdp", "tensor", "min_shard_size"):
        need(m[field] >= 1, f"mesh.{field}", m[field], "at least 1")
    need(m.data is None or m.data >= 1, "mesh.data", m.data, "None or at least 1")
    need(config.sampler.solver in SOLVERS, "sampler.solver", config.sampler.solver, f"one of {', '.join(SOLVERS)}")
    need(s.eta == 0 or config.sampler.solver == "ddim", "sample.eta", s.eta, f"0 for solver {config.sampler.solver}")
    spacing = config.sampler.spacing
    need(1 <= spacing <= MAX_SPACING, "sampler.spacing", spacing, f"in [1, {MAX_SPACING:g}]")
    rescale = config.sampler.guidance_rescale
    need(0 <= rescale <= 1, "sampler.guidance_rescale", rescale, "in [0, 1]")
    tries = config.sampler.tries
    need(1 <= tries <= MAX_TRIES, "sampler.tries", tries, f"in [1, {MAX_TRIES}]")
    pull = config.sampler.get("event_guidance", 0.0)
    need(0 <= pull <= MAX_EVENT_GUIDANCE, "sampler.event_guidance", pull, f"in [0, {MAX_EVENT_GUIDANCE:g}]")
    accept = config.sampler.get("accept", 0.0)  # bundles and checkpoints from before it have none
    need(0 <= accept <= 1, "sampler.accept", accept, "in [0, 1]")
    noise = config.sampler.direction_noise
    need(0 <= noise <= MAX_DIRECTION_NOISE, "sampler.direction_noise", noise, f"in [0, {MAX_DIRECTION_NOISE:g}]")
    low, high = config.sampler.guidance_interval
    need(0 <= low <= high <= 1, "sampler.guidance_interval", (low, high), "rising and in [0, 1]")
    for task in TASKS:
        t = config.train[task]
        need(t.batch_size >= 1, f"train.{task}.batch_size", t.batch_size, "at least 1")
        need(t.steps >= 1, f"train.{task}.steps", t.steps, "at least 1")
        for field in ("lr", "grad_clip"):
            need(0 < t[field] < math.inf, f"train.{task}.{field}", t[field], "positive and finite")
        for field in ("b1", "b2", "ema_decay"):
            need(0 <= t[field] < 1, f"train.{task}.{field}", t[field], "in [0, 1)")
        for field in ("warmup_steps", "weight_decay"):
            need(0 <= t[field] < math.inf, f"train.{task}.{field}", t[field], "0 or more, and finite")
        need(0 <= t.final_lr_ratio <= 1, f"train.{task}.final_lr_ratio", t.final_lr_ratio, "in [0, 1]")
        need(t.dtype in ("float32", "bfloat16"), f"train.{task}.dtype", t.dtype, "float32 or bfloat16")
        whole = t.accumulate >= 1 and t.batch_size % t.accumulate == 0
        need(whole, f"train.{task}.accumulate", t.accumulate, f"divides train.{task}.batch_size = {t.batch_size}")
        if task in ("text_encoder", "reader"):
            rule = "1: its loss is a mean over the captions that name something, which parts would weigh otherwise"
            need(t.accumulate == 1, f"train.{task}.accumulate", t.accumulate, rule)
        if task not in ("mel_vae", "stft_vae", "diffusion"):
            need(not t.remat, f"train.{task}.remat", t.remat, "False: this network is not rematerialised")
            known = t.dtype == "float32" or task == "text_encoder"
            need(known, f"train.{task}.dtype", t.dtype, "float32: this network has no other")
        for field in ("log_every", "eval_every", "save_every", "keep"):
            need(t[field] >= 1, f"train.{task}.{field}", t[field], "at least 1")


def _validate_feeding(f: ConfigDict, need) -> None:
    need(f.source in ("features", "render"), "feeding.source", f.source, "features or render")
    need(
        f.source == "features" or f.clip_bank, "feeding.clip_bank", f.clip_bank, "a folder, for feeding.source = render"
    )
    need(f.source == "features" or not f.mix, "feeding.mix", f.mix, "only for feeding.source = features")
    need(f.num_workers >= 0, "feeding.num_workers", f.num_workers, "0 or more")
    need(0 <= f.mirror <= 1, "feeding.mirror", f.mirror, "in [0, 1]")
    need(
        _named_weights(f.mix),
        "feeding.mix",
        f.mix,
        "pairs of a data set and a positive weight",
    )


def _named_weights(pairs) -> bool:
    return all(len(pair) == 2 and isinstance(pair[0], str) and pair[1] > 0 for pair in pairs)
