"""Measure the vocoders alone: `python benchmarks/vocoders.py --data ROOT`. Log-mel in, waveform out, log-mel compared.

Recordings that training never saw (split valid), one channel, their exact log-mel. `griffin_lim` is given with its
iterations and, after them, those of `ops.griffin_lim.match_mel`. Times are of whole batches, without compilation.
"""

import argparse
import copy
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dualspec_jax import compile_cache
from dualspec_jax.bundle import load_bundle
from dualspec_jax.ops.mel import log_mel, mel_filters
from dualspec_jax.ops.stft import istft, stft
from dualspec_jax.prompt_set import labels_of
from dualspec_jax.real_scenes import DIRECTIONS, load_scenes, recorded_labels
from dualspec_jax.vocoders import make_vocoder, vocoder_params


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="source folder with events/metadata.csv")
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument("--batch-size", type=int, default=8, help="clips at once (default 8)")
    p.add_argument("--repeats", type=int, default=3, help="timings, of which the median counts (default 3)")
    p.add_argument("--seed", type=int, default=0, help="of the clips' placing and the phases (default 0)")
    return p


def measure(bundle, waves: np.ndarray, batch_size: int, repeats: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return {vocoder: (log-mel L1 in nepers, seconds a clip)} for mono clips [n, N]; n is a multiple of the batch."""
    audio = bundle.config.audio
    size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    filters = mel_filters(audio)
    log_mel_of = jax.jit(lambda wave: log_mel(stft(wave[..., None], **size), filters, audio.mel_floor)[..., 0])
    runs = {f"griffin_lim {n} + {m}": ("griffin_lim", n, m, 0) for n, m in ((32, 0), (16, 0), (12, 4))}
    if "vocoder" in bundle.params:
        runs |= {f"vocos + {m}": ("vocos", 0, 0, m) for m in sorted({0, 4, 8, 16, bundle.config.vocoder.mel_iters})}
    keys = jax.random.split(jax.random.key(seed), batch_size)
    found = {}
    for title, (name, iters, mel_iters, network_iters) in runs.items():
        config = copy.deepcopy(bundle.config)
        config.sample.update(griffin_lim_iters=iters, mel_iters=mel_iters)
        config.vocoder.mel_iters = network_iters
        vocode, params = make_vocoder(config, name), vocoder_params(bundle, name)

        @jax.jit
        def run(params, mel, keys, vocode=vocode):
            ears = jnp.stack([mel - 0.5 * jnp.log(2.0)] * 2, axis=-1)  # whose energies add up to the channel
            content = vocode(params, ears, None, keys)
            return istft(content[..., None], n_samples=audio.n_samples, n_fft=audio.n_fft, hop_length=audio.hop_length)[
                ..., 0
            ]

        errors, times = [], []
        for start in range(0, len(waves), batch_size):
            mel = log_mel_of(waves[start : start + batch_size])
            wave = run(params, mel, keys)
            errors.append(float(jnp.mean(jnp.abs(log_mel_of(wave) - mel))))
        for _ in range(repeats):
            begin = time.perf_counter()
            run(params, mel, keys).block_until_ready()
            times.append((time.perf_counter() - begin) / batch_size)
        found[title] = float(np.mean(errors)), float(np.median(times))
    return found


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    compile_cache.enable()
    bundle = load_bundle(args.bundle)
    labels = recorded_labels(args.data, labels_of("full"))
    scenes = load_scenes(args.data, labels, bundle.config.audio.n_samples, args.seed)[::DIRECTIONS]
    if not 1 <= args.batch_size <= len(scenes):
        parser.error(f"--batch-size {args.batch_size}: must be in [1, {len(scenes)}], the recordings there are")
    scenes = scenes[: len(scenes) // args.batch_size * args.batch_size]
    waves = np.stack([scene.mono for scene in scenes])
    print(f"{len(waves)} recordings, batches of {args.batch_size}, {jax.devices()[0].device_kind}")
    print("| vocoder | log-mel L1, nepers | s a clip |\n|---|---|---|")
    for title, (error, seconds) in measure(bundle, waves, args.batch_size, args.repeats, args.seed).items():
        print(f"| {title} | {error:.4f} | {seconds:.3f} |")


if __name__ == "__main__":
    main()
