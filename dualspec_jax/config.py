"""Declare every field of an experiment with its default; `config_rules` checks them."""

from ml_collections import ConfigDict, config_dict

TASKS = (
    "mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "vocoder", "text_encoder", "reader", "event_guide",
    "listener", "classifier", "localiser", "diffusion",
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
            label_factors=(),  # labels to see more or less often: (("car horn", 3.0), ...); others have 1
            num_threads=4,  # reader threads of Grain
            prefetch=8,  # elements read ahead
        )
    )
    c.feeding = ConfigDict(
        dict(  # how batches are made; may change between two runs of one training
            source="features",  # features (of the data set; cached latents for diffusion) | render (on the device)
            clip_bank="",  # folder of `data.clip_bank`, for source = render
            head="",  # HRTF file for source = render; "" = $DUALSPEC_DATA/hrtf/*.sofa, or a spherical head
            num_workers=0,  # processes that make batches, the same for a whole run; 0 = threads of this one
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
    c.event_guide = ConfigDict(
        dict(  # tells which event a Mel latent holds, to lead the sampler; needs text.event_codes
            channels=(64, 96, 128),
            hidden=128,
            norm_groups=8,
            dropout=0.3,
            latent_noise=0.8,  # at most, added to the latents in training, in standard deviations of a channel
            mixing=0.3,  # at most, share of another latent of the batch mixed in
        )
    )
    c.listener = ConfigDict(
        dict(  # tells which event a finished clip holds, to choose among the sampler's tries; needs text.event_codes
            pool=2,  # frames averaged before anything else
            channels=(32, 64, 96, 128),
            hidden=128,
            norm_groups=8,
            dropout=0.3,
            augment=0.25,  # share of the clips that each kind of augmentation changes
            mixing=0.35,  # at most, share of another clip of the batch mixed in
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
            min_snr_gamma=config_dict.placeholder(float),  # Hang et al. 2023; None = plain loss
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
            event_guidance=0.5,  # pull of the event guide, see diffusion.guidance.guide_to_event
            accept=0.8,  # probability by the listener from which a clip is kept at once; 0 keeps all
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
            data=config_dict.placeholder(int),  # devices along this axis; None = all that the other two leave
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
        ("event_guide", 64, 1200, 2e-3),
        ("listener", 64, 2500, 2e-3),
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
                weight_decay=0.05 if task in ("classifier", "listener") else 0.01,
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


def branch_guidance(scale: float | tuple[float, float]) -> tuple[float, float]:
    """Return (Mel, STFT) scales; one number drives the Mel branch and leaves STFT at the smaller of it and 3.

    Raises:
      ValueError: not one or two numbers in [0, 100].
    """
    parts = tuple(scale) if isinstance(scale, tuple | list) else (scale, min(scale, 3.0))
    if len(parts) != 2 or not all(0.0 <= p <= 100.0 for p in parts):
        raise ValueError(f"guidance_scale = {scale!r}: must be one or two numbers in [0, 100], as in 4 or (4, 3)")
    return float(parts[0]), float(parts[1])
