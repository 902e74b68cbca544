"""The size of the field: a U-Net of Tango's shape on the latents of two VAEs of AudioLDM's shape, FLAN-T5-large.

Start from public weights with `python -m dualspec_jax.convert` (README.md, "At paper scale"), then the stages of
launch/train_embedded.sh with this config.

U-Net: 867.0 M parameters, 2.79e14 FLOPs in a step of 256 (`python -m dualspec_jax.sizes --config configs/base.py`).

Command: python -m dualspec_jax.train --config configs/base.py --task diffusion --workdir runs/base
Hardware: 8 GPUs of 80 GB, or a TPU slice of 32 chips or more; elsewhere override --config.mesh.fsdp.
"""

from ml_collections import ConfigDict

from dualspec_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.dataset = "spatial_audio/spatial_audio_6k:1.0.0"
    c.data.crop_frames = 512
    for vae in (c.mel_vae, c.stft_vae):  # both 512 x 64 after the stem, 128 x 16 x 8 at the end
        vae.update(channels=(128, 256, 512), strides=((2, 2), (2, 2)), layers_per_block=2, norm_groups=32)
        vae.mid_attention = True
    c.mel_vae.update(patch=(1, 1), input_mean=(0.0, 0.0), input_std=(1.0, 1.0))  # as AudioLDM: log-mels as they are
    c.stft_vae.patch = (1, 8)
    c.text.update(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, max_length=64)
    c.unet.update(
        patch=(1, 1),
        channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention=(True, True, True, False),
        head_dim=64,
        norm_groups=32,
        freq_embedding=False,
        pooled_text=False,
    )
    c.diffusion.update(schedule="scaled_linear", min_snr_gamma=5.0)
    c.mesh.fsdp = 8
    for task, batch, steps, lr in (
        ("mel_vae", 64, 100_000, 1e-4),
        ("stft_vae", 64, 100_000, 1e-4),
        ("text_encoder", 256, 10_000, 1e-4),
        ("diffusion", 256, 200_000, 1e-4),
    ):
        c.train[task].update(batch_size=batch, steps=steps, lr=lr, warmup_steps=1000, ema_decay=0.9999)
        c.train[task].update(log_every=100, eval_every=2000, eval_batches=8, save_every=1000, keep=3, dtype="bfloat16")
    for task in ("mel_vae", "stft_vae", "diffusion"):
        c.train[task].remat = True
    return c
