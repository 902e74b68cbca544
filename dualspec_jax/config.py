"""Declare every field of an experiment with its default, and check a config before any device is touched."""

import math

from ml_collections import ConfigDict

TASKS = (
    "mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "vocoder", "text_encoder", "reader", "reranker", "classifier",
    "localiser", "diffusion",
)  # fmt: skip
MAX_SPACING = 4.0  # of the sampler's steps
MAX_DIRECTION_NOISE = 100.0  # variances of normalised latents
MAX_EVENT_GUIDANCE = 10.0  # root mean squares of the clean content
MAX_TRIES = 100  # at a clip that comes out silent or as another sound
SOLVERS = ("ddim", "dpmpp_2m", "unipc")
VOCODERS = ("griffin_lim_stft", "griffin_lim", "vocos")  # see `vocoders.default_vocoder`


def default() -> ConfigDict:
    """Return the default config: the embedded size, which trains on two CPU cores."""
    c = ConfigDict()
    c.seed = 0
    c.audio = ConfigDict(
        dict(
            sample_rate=16000,  # Hz
            n_samples=81920,  # 5.12 s
            n_fft=1024,  # samples; also the window length
            hop_length=160,  # samples
            n_frames=512,  # frames kept of a centred STFT
            n_bins=512,  # bins kept: DC to just below Nyquist
            n_mels=64,
            fmin=0.0,  # Hz
            fmax=8000.0,  # Hz
            mel_floor=1e-5,  # magnitude, before the natural log
            stft_floor=1e-3,  # magnitude: lowest level of the STFT features
            coherence_frames=4,  # frames averaged in the interaural coherence
        )
    )
    c.data = ConfigDict(
        dict(
            dataset="spatial_audio/spatial_audio_1k:1.0.0",  # TFDS name: builder/config:version
            data_dir="",  # folder the data set was built in (TFDS data_dir); "" means <workdir>/tfds
            latents_dir="",  # folder of cached latents (`dualspec_jax.encode`); "" means <workdir>/latents
            crop_frames=128,  # frames of a random crop in VAE training
            label_balance=0.5,  # weight of a label is count ** (1 - label_balance); 1 = all equal, < 0 favours large
            label_cap=0,  # scenes beyond which a label's weight grows no more; 0 = no limit
            num_threads=4,  # reader threads of Grain
            prefetch=8,  # elements read ahead
        )
    )
    c.feeding = ConfigDict(
        dict(  # how batches are made; may change between two runs of one training
            source="features",  # features (of the data set; cached latents for diffusion) | render (on the device)
            clip_bank="",  # folder of `data.clip_bank`, for source = render
            head="",  # HRTF file for source = render; "" = $DUALSPEC_DATA/hrtf/*.sofa, or a spherical head
            num_workers=0,  # processes that make batches; 0 = threads of this one
            mirror=0.0,  # share of the VAEs' training scenes whose ears are swapped
            mix=(),  # further data sets with their weights: (("builder/config:version", 0.5), ...); data.dataset has 1
        )
    )
    c.mel_vae = ConfigDict(
        dict(
            in_channels=2,
            patch=(2, 2),  # space-to-depth stem: (time, frequency)
            channels=(48, 96),
            strides=((2, 2),),  # (time, frequency) between levels
            layers_per_block=1,
            latent_channels=8,
            norm_groups=8,
            mid_attention=False,
            input_mean=(-5.0, -5.0),  # nepers, per channel
            input_std=(2.5, 2.5),
            kl_weight=1e-3,
            diff_weight=0.5,  # of the L1 on the difference between the ears
        )
    )
    c.mel_decoder = ConfigDict(
        dict(  # second stage of the Mel-VAE: its decoder against a discriminator, the latents as they are
            adversarial_weight=0.2,  # of the least-squares score, beside the L1 in nepers
            feature_weight=2.0,  # of the L1 between what the discriminator's layers see
            latent_noise=0.05,  # added to the latents, in standard deviations of a channel: sampled ones are not exact
            discriminator_channels=(32, 64, 128),
        )
    )
    c.stft_vae = ConfigDict(
        dict(
            in_channels=4,
            patch=(4, 8),
            channels=(32, 64, 128),
            strides=((1, 2), (1, 2)),
            layers_per_block=1,
            latent_channels=8,
            norm_groups=8,
            mid_attention=False,
            input_mean=(-4.5, -4.5, 0.0, 0.0),  # levels in nepers, then coherence
            input_std=(2.2, 2.2, 0.67, 0.67),
            kl_weight=1e-3,
            level_weight=0.3,  # of the L1 on each ear's level
            cue_weight=1.0,  # of the L1 on level difference and (twice) coherence
        )
    )
    c.stft_decoder = ConfigDict(
        dict(  # second stage of the STFT-VAE: its decoder learns where loud bins are heard, the latents as they are
            loud_weight=1.0,  # of the errors weighted by amplitude, see `losses.loud_errors`
            latent_noise=0.02,  # added to the latents, in standard deviations of a channel
        )
    )
    c.vocoder = ConfigDict(
        dict(  # Vocos-like: the content's complex spectrogram from its log-mel
            channels=256,
            layers=5,
            hidden=512,
            mel_iters=16,  # projections onto the log-mel after the network, see `ops.griffin_lim.match_mel`
            stft_weight=0.5,  # of the L1 on log magnitudes at three resolutions, beside that on the log-mel
            adversarial_weight=0.05,  # of the least-squares score
            feature_weight=0.2,  # of the L1 between what the discriminators' layers see
            discriminator_channels=(16, 32, 64),
        )
    )
    c.text = ConfigDict(
        dict(
            vocab_size=2048,
            d_model=192,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=6,
            relative_buckets=32,
            relative_max_distance=128,
            max_length=48,  # tokens; longer prompts are cut
            event_codes=0,  # events told apart, "none" among them, whose codes join the features; 0 = T5 alone
            dropout=0.1,  # of whole words in training captions
        )
    )
    c.reader = ConfigDict(
        dict(  # reads the direction off the text features, for prompts whose words are not read by rule
            azimuths=120,  # outputs around the circle
            queries=8,
            hidden=256,
            width=0,  # tokens, an odd number, that are first joined to one feature; 0 = none
            label_std_deg=3.0,  # of the normal curve around the azimuth named
        )
    )
    c.reranker = ConfigDict(
        dict(  # tells which event a Mel latent holds, to choose among the sampler's tries; needs text.event_codes
            channels=(64, 96, 128),
            hidden=128,
            norm_groups=8,
            dropout=0.3,
            latent_noise=0.8,  # at most, added to the latents in training, in standard deviations of a channel
            mixing=0.3,  # at most, share of another latent of the batch mixed in
        )
    )
    c.unet = ConfigDict(
        dict(
            patch=(2, 2),
            channels=(96, 160, 256),
            layers_per_block=1,
            attention=(False, True, True),  # self- and cross-attention, level by level
            head_dim=32,
            norm_groups=16,
            freq_embedding=True,  # learned position along frequency
            pooled_text=True,  # the mean text feature also joins the time embedding
            azimuth_token=True,
            azimuth_harmonics=4,  # sin/cos of k * azimuth, k = 1 .. harmonics
            condition_rows=False,  # time, text and azimuth also add to each frequency row of the first features
        )
    )
    c.diffusion = ConfigDict(
        dict(
            schedule="cosine",  # cosine | scaled_linear
            num_steps=1000,
            prediction="v",  # v | eps
            min_snr_gamma=None,  # Hang et al. 2023; None = plain loss
            mel_weight=1.0,  # of the Mel latents in the loss
            stft_weight=0.5,
            null_prob=0.1,  # captions replaced by ""
            direction_free_prob=0.1,  # captions without direction
            event_free_prob=0.1,  # captions without event
            word_tolerance_deg=6.0,  # captions name an hour or a sector only if its centre is this near to the source
            azimuth_token_prob=0.5,  # examples that also get the numeric azimuth
            time_roll=True,  # roll the latents in time by a random amount
            words_dropped=0.0,  # share of captions read as the code of their event alone; needs text.event_codes
            static_weight=0.0,  # of the squared mean over time of the STFT latents' error, beside the plain one
        )
    )
    c.sample = ConfigDict(
        dict(
            steps=10,
            guidance_mel=6.0,
            guidance_stft=3.0,
            eta=0.0,
            griffin_lim_iters=32,
            griffin_lim_momentum=0.99,
            mel_iters=0,  # projections onto the log-mel after them, see `ops.griffin_lim.match_mel`
        )
    )
    c.sampler = ConfigDict(
        dict(
            solver="unipc",  # one of SOLVERS
            spacing=1.5,  # of the steps: 1 is even, above it more of them are at high noise
            guidance_interval=(0.0, 1.0),  # noise levels t / num_steps that are guided; 1 is pure noise
            guidance_rescale=0.7,  # of the standard deviation, see diffusion.guidance
            reword=True,  # new words for a known sound become its label; False for a model of several sources
            tries=3,  # at most, at a clip that comes out silent or less probably the named event than `accept`
            event_guidance=0.5,  # pull of the reranker towards the named event, see diffusion.guidance.guide_to_event
            accept=0.5,  # probability by the reranker from which a clip is kept at once; 0 keeps all
            direction_noise=0.25,  # how wrong the generated direction is taken to be, see diffusion.direction_prior
        )
    )
    c.classifier = ConfigDict(
        dict(
            pool=2,  # frames averaged before anything else
            hidden=(256, 128),
            dropout=0.3,
            augment=0.25,  # share of the clips that each kind of augmentation changes
        )
    )
    c.localiser = ConfigDict(
        dict(
            hrtf="",  # file of a measured head to train on beside the spherical ones; "" = spherical heads only
            azimuths=120,  # outputs around the circle
            hidden=(512, 256),
            dropout=0.1,
            label_std_deg=3.0,  # of the normal curve around the true azimuth that is the target
        )
    )
    c.mesh = ConfigDict(
        dict(
            data=None,  # devices along this axis; None = all that the other two leave
            fsdp=1,  # parameters, averages and optimizer state are split over these devices, and the batch too
            tensor=1,  # matrices are split over these devices, the batch is not
            min_shard_size=2**16,  # elements; smaller arrays cost more to gather than to keep everywhere
        )
    )
    c.train = ConfigDict()
    for task, batch, steps, lr in (
        ("mel_vae", 16, 2000, 1.5e-3),
        ("mel_decoder", 16, 2000, 4e-4),
        ("stft_vae", 16, 1000, 1.5e-3),
        ("stft_decoder", 16, 1000, 8e-4),
        ("vocoder", 16, 4000, 1e-3),
        ("text_encoder", 128, 3000, 1e-3),
        ("reader", 64, 3000, 2e-3),
        ("reranker", 64, 1200, 2e-3),
        ("classifier", 64, 800, 2e-3),
        ("localiser", 128, 1500, 2e-3),
        ("diffusion", 16, 5000, 1e-3),
    ):
        c.train[task] = ConfigDict(
            dict(
                batch_size=batch,
                steps=steps,
                lr=lr,
                warmup_steps=100,
                final_lr_ratio=0.02,  # cosine decay ends at lr * this
                b1=0.9,
                b2=0.98,
                weight_decay=0.05 if task == "classifier" else 0.01,
                grad_clip=1.0,  # global norm
                ema_decay=0.995,
                log_every=20,  # steps
                eval_every=250,  # steps
                eval_batches=4,
                save_every=500,  # steps
                keep=2,  # checkpoints kept, besides the best
                accumulate=1,  # parts that a batch is split into, one after the other, for one update
                dtype="float32",  # of the computation: float32 | bfloat16; parameters stay float32
                remat=False,  # VAEs and diffusion: recompute blocks in the backward pass, to save memory
            )
        )
    return c.lock()  # a typo in configs/*.py fails


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
    need(config.data.label_cap >= 0, "data.label_cap", config.data.label_cap, "at least 0")
    need(a.n_bins == a.n_fft // 2, "audio.n_bins", a.n_bins, f"n_fft // 2 = {a.n_fft // 2} (Nyquist is dropped)")
    need(0 <= a.fmin < a.fmax <= a.sample_rate / 2, "audio.fmax", a.fmax, "fmin < fmax <= sample_rate / 2")
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
    if "reranker" in config:
        r = config.reranker
        for ch in r.channels:
            need(ch % r.norm_groups == 0, "reranker.channels", r.channels, f"multiples of norm_groups {r.norm_groups}")
        need(r.hidden >= 1, "reranker.hidden", r.hidden, "at least 1")
        need(0 <= r.dropout < 1, "reranker.dropout", r.dropout, "in [0, 1)")
        need(r.latent_noise >= 0, "reranker.latent_noise", r.latent_noise, "0 or more")
        need(0 <= r.mixing < 0.5, "reranker.mixing", r.mixing, "in [0, 0.5)")
    d = config.diffusion
    need(d.schedule in ("cosine", "scaled_linear"), "diffusion.schedule", d.schedule, "cosine or scaled_linear")
    need(d.prediction in ("v", "eps"), "diffusion.prediction", d.prediction, "v or eps")
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
        need(t.lr > 0, f"train.{task}.lr", t.lr, "positive")
        need(0 <= t.ema_decay < 1, f"train.{task}.ema_decay", t.ema_decay, "in [0, 1)")
        need(t.dtype in ("float32", "bfloat16"), f"train.{task}.dtype", t.dtype, "float32 or bfloat16")
        whole = t.accumulate >= 1 and t.batch_size % t.accumulate == 0
        need(whole, f"train.{task}.accumulate", t.accumulate, f"divides train.{task}.batch_size = {t.batch_size}")
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
        all(len(pair) == 2 and isinstance(pair[0], str) and pair[1] > 0 for pair in f.mix),
        "feeding.mix",
        f.mix,
        "pairs of a data set and a positive weight",
    )


def branch_guidance(scale: float | tuple[float, float]) -> tuple[float, float]:
    """Return (Mel, STFT) scales; one number drives the Mel branch and leaves STFT at the smaller of it and 3.

    Raises:
      ValueError: not one or two numbers in [0, 100].
    """
    parts = tuple(scale) if isinstance(scale, tuple | list) else (scale, min(scale, 3.0))
    if len(parts) != 2 or not all(0.0 <= p <= 100.0 for p in parts):
        raise ValueError(f"guidance_scale = {scale!r}: must be one or two numbers in [0, 100], as in 4 or (4, 3)")
    return float(parts[0]), float(parts[1])
