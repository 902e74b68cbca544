"""Measure the data pipeline against what it replaces, in one run on one machine, and print a table.

    python benchmarks/data_speed.py --parts features,render,coding                       # needs no data
    python benchmarks/data_speed.py --parts memory --scenes 1000,20000                   # builds, then deletes
    python benchmarks/data_speed.py --parts pipeline --workdir runs/embedded --config configs/embedded.py

`features`: both spectrograms of two-ear clips, by this package and by librosa and NumPy. `render`: mono clip to both
spectrograms, by this package in batches on the device and by a SciPy and librosa loop, clip by clip. `coding`: size and
error of stored features. `memory`: peak memory of a build. `pipeline`: batches of every task, the train step that
consumes them, and the share of a step that waits for data.

Speeds are given by the clock and by CPU time; the latter is the work on all cores together, and so says "per core"
even where other programs run beside it. Both sides get what makes them fast: NumPy one thread (two that wait for each
other double the loop's CPU time), and an allocator that keeps freed memory. Without the latter every temporary array is
mapped anew, its pages fault, and on a virtual machine that alone may triple the loop's time, or not, depending on what
ran before; the pages that still fault are counted.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported

import jax  # noqa: E402 - after the number of threads is set
import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dualspec_jax import compile_cache  # noqa: E402 - after the path is set
from dualspec_jax import config as config_lib  # noqa: E402 - after the path is set
from dualspec_jax.ops.analysis import analyse_clips  # noqa: E402 - after the path is set
from dualspec_jax.ops.binaural import floor_powers  # noqa: E402 - after the path is set
from dualspec_jax.ops.coding import decode_stft_features, encode_stft_features  # noqa: E402
from dualspec_jax.ops.mel import mel_filters  # noqa: E402
from dualspec_jax.spatial.hrtf import spherical_head  # noqa: E402
from dualspec_jax.spatial.render import HrirBank, make_bank_renderer, make_renderer  # noqa: E402

AUDIO = config_lib.default().audio
BATCH = 16  # of the embedded model's training
ROUNDS = 5  # of ours and theirs in turn: other programs come and go


def clock(run, seconds: float = 3.0) -> tuple[float, float, float]:
    """Return wall and CPU seconds and page faults of one call, means over calls for `seconds` of CPU time.

    One call before warms up.
    """
    run()
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wall, cpu, faulted, calls = time.perf_counter(), time.process_time(), faults(), 0
    while time.process_time() - cpu < seconds:
        run()
        calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls, (faults() - faulted) / calls


def librosa_features(wave: np.ndarray, response: np.ndarray, filters: np.ndarray):
    """Return mel [T, M, 2] and STFT features [T, F, 4] of one clip [N, 2], as `ops` defines them."""
    import librosa

    spec = np.stack(
        [
            librosa.stft(
                np.ascontiguousarray(wave[:, ear]), n_fft=AUDIO.n_fft, hop_length=AUDIO.hop_length, pad_mode="constant"
            ).T[: AUDIO.n_frames, : AUDIO.n_bins]
            for ear in (0, 1)
        ],
        axis=-1,
    )
    mel = np.log(np.maximum(np.einsum("tfc,fm->tmc", np.abs(spec), filters, optimize=True), AUDIO.mel_floor))
    n = AUDIO.coherence_frames

    def average(x):
        padded = np.pad(x, ((n // 2, n - 1 - n // 2), (0, 0)))
        return sum(padded[i : i + len(x)] for i in range(n)) / n

    floor = AUDIO.stft_floor**2 / (0.5 * (np.abs(response) ** 2).sum(-1) + 1e-12)
    floor_l, floor_r = floor * np.abs(response[:, 0]) ** 2, floor * np.abs(response[:, 1]) ** 2
    left, right = spec[..., 0], spec[..., 1]
    power_l, power_r = np.abs(left) ** 2, np.abs(right) ** 2
    gamma = (average(left * right.conj()) + floor * response[:, 0] * response[:, 1].conj()) / np.sqrt(
        (average(power_l) + floor_l) * (average(power_r) + floor_r) + 1e-20
    )
    tiny = 1e-4 * AUDIO.stft_floor**2
    levels = [0.5 * np.log(p + f + tiny) for p, f in ((power_l, floor_l), (power_r, floor_r))]
    return mel, np.stack([*levels, gamma.real, gamma.imag], axis=-1)


def make_clips():
    """Return mono clips [B, N] (noise in bursts), azimuths [B], and the head."""
    rng = np.random.default_rng(0)
    envelope = np.abs(np.sin(np.linspace(0, 12, AUDIO.n_samples))) ** 4
    mono = (0.1 * envelope * rng.standard_normal((BATCH, AUDIO.n_samples))).astype(np.float32)
    return mono, np.float32(rng.integers(0, 360, BATCH)), spherical_head()


def compare(name: str, ours, theirs, rows: list) -> None:
    """Time `ours` on a batch and `theirs` on one clip, in turn, and add a row with clips a second and both ratios."""
    turns = [(clock(ours, 0.6), clock(theirs, 0.6)) for _ in range(ROUNDS)]
    (wall, cpu, faults), (their_wall, their_cpu, their_faults) = np.median(turns, axis=0)
    rows.append(
        {
            "what": name,
            "ours_clips_per_s": BATCH / wall,
            "ours_clips_per_cpu_s": BATCH / cpu,
            "ours_page_faults": faults / BATCH,
            "theirs_clips_per_s": 1 / their_wall,
            "theirs_clips_per_cpu_s": 1 / their_cpu,
            "theirs_page_faults": their_faults,
            "ratio_wall": their_wall * BATCH / wall,
            "ratio_cpu": their_cpu * BATCH / cpu,
        }
    )


def measure_features(rows: list) -> None:
    """Compare the analysis alone; the two must agree first."""
    mono, azimuth, head = make_clips()
    filters = mel_filters(AUDIO)
    response = head.spectrum(azimuth, AUDIO.n_fft, AUDIO.n_bins)
    render = make_renderer(AUDIO.to_json())
    wave, mel, features = map(np.asarray, render(mono[:, None], head.at(azimuth)[:, None], response))
    for expected, given in zip(librosa_features(wave[0], response[0], filters), (mel[0], features[0]), strict=True):
        np.testing.assert_allclose(given, expected, atol=2e-3)

    sizes = {k: AUDIO[k] for k in ("n_fft", "hop_length", "n_frames", "mel_floor", "stft_floor")}

    @jax.jit
    def analyse(x, floor_response):
        floors = floor_powers(floor_response, AUDIO.stft_floor)
        return analyse_clips(x, floors, filters, average_frames=AUDIO.coherence_frames, **sizes)

    on_device = jax.device_put((wave, response))
    ours = lambda: jax.block_until_ready(analyse(*on_device))
    compare("features", ours, lambda: librosa_features(wave[0], response[0], filters), rows)


def measure_render(rows: list) -> None:
    """Compare mono clip to features."""
    import scipy.signal

    mono, azimuth, head = make_clips()
    filters = mel_filters(AUDIO)
    render = make_bank_renderer(HrirBank(head, AUDIO.n_fft, AUDIO.n_bins), AUDIO)

    def theirs():
        ears = head.at(float(azimuth[0]))
        wave = np.stack([scipy.signal.fftconvolve(mono[0], ear)[: AUDIO.n_samples] for ear in ears], axis=-1)
        return librosa_features(wave, head.spectrum(float(azimuth[0]), AUDIO.n_fft, AUDIO.n_bins), filters)

    on_device = jax.device_put((mono, azimuth))
    compare("render + features", lambda: jax.block_until_ready(render(*on_device)), theirs, rows)


def measure_coding(rows: list) -> None:
    """Compare ways to store the STFT features of a clip: size, size gzipped, largest and mean error."""
    mono, azimuth, head = make_clips()
    render = make_renderer(AUDIO.to_json())
    response = head.spectrum(azimuth, AUDIO.n_fft, AUDIO.n_bins)
    features = np.asarray(render(mono[:, None], head.at(azimuth)[:, None], response)[2])[0]
    code = encode_stft_features(features)
    quarter = np.repeat(decode_stft_features(code)[2::4, :, 2:], 4, axis=0)
    for name, stored, decoded in (
        ("float32", features, features),
        ("float16", features.astype(np.float16), features.astype(np.float16).astype(np.float32)),
        ("8 bits", code, decode_stft_features(code)),
        (
            "8 bits, coherence at 1/4 of the frames",
            np.concatenate([code[..., :2].ravel(), code[2::4, :, 2:].ravel()]),
            np.concatenate([decode_stft_features(code)[..., :2], quarter], axis=-1),
        ),
    ):
        error = np.abs(decoded - features)
        rows.append(
            {
                "what": f"coding: {name}",
                "MB": stored.nbytes / 1e6,
                "MB_gzip": len(gzip.compress(stored.tobytes(), 1)) / 1e6,
                "level_error_max_neper": float(error[..., :2].max()),
                "level_error_mean_neper": float(error[..., :2].mean()),
                "coherence_error_max": float(error[..., 2:].max()),
                "coherence_error_mean": float(error[..., 2:].mean()),
            }
        )


_BUILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, soundfile
from data.spatial_audio.build import build
from data.spatial_audio.spatial_audio_dataset_builder import SpatialAudioConfig
if __name__ == "__main__":
    build(SpatialAudioConfig(name="memory", description="x", n_train=int(sys.argv[4])), sys.argv[3], sys.argv[2])
    print("RSS", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure_memory(rows: list, scenes: list[int]) -> None:
    """Build data sets of several sizes from the same made-up clips, each in a new process, and delete them."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        rng = np.random.default_rng(0)
        table = ["file,label,licence"]
        for i in range(40):
            soundfile.write(str(source / f"{i}.wav"), 0.1 * rng.standard_normal(32000), 16000)
            table.append(f"{i}.wav,{'abcd'[i % 4]} noise,CC0")
        (source / "metadata.csv").write_text("\n".join(table) + "\n")
        for n in scenes:
            with tempfile.TemporaryDirectory() as out:
                started = time.perf_counter()
                command = [sys.executable, "-c", _BUILD, str(ROOT), str(source), out, str(n)]
                text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows.append(
                    {
                        "what": f"build of {n} scenes",
                        "peak_rss_MiB": float(text.rpartition("RSS ")[2]),
                        "seconds": time.perf_counter() - started,
                    }
                )


def measure_pipeline(rows: list, config_file: str, workdir: Path, steps: int) -> None:
    """Time batches alone, the train step alone on one batch, and the wait for data when both run together."""
    import importlib.util

    from dualspec_jax.optimizer import make_optimizer
    from dualspec_jax.tasks import make_task
    from dualspec_jax.train_step import init_state, make_train_step

    spec = importlib.util.spec_from_file_location("experiment", config_file)
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    config = experiment.get_config()
    task = make_task(config, "diffusion", workdir)
    batches = iter(task.make_batches("train", True, 0))
    batch = next(batches)
    wall, cpu, _ = clock(lambda: next(batches), 1.0)
    tx, _ = make_optimizer(config.train.diffusion)
    state, key = jax.jit(lambda key: init_state(task.init, tx, key))(jax.random.key(0)), jax.random.key(1)
    frozen = jax.device_put(task.frozen)
    step = jax.jit(make_train_step(task.loss_fn, tx, config.train.diffusion.ema_decay), donate_argnums=0)
    state, metrics = step(state, batch, key, *frozen)
    jax.block_until_ready(metrics)
    started = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch, key, *frozen)
    jax.block_until_ready(metrics)
    alone = (time.perf_counter() - started) / steps
    started, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = step(state, batch, key, *frozen)
        jax.block_until_ready(metrics)
    together = (time.perf_counter() - started) / steps
    rows.append(
        {
            "what": "diffusion batches and train step",
            "batches_per_s": 1 / wall,
            "batches_per_cpu_s": 1 / cpu,
            "steps_per_s": 1 / alone,
            "ratio": alone / wall,
            "step_with_data_s": together,
            "data_wait_share": waited / steps / together,
        }
    )
    batches.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="features,render,coding")
    parser.add_argument("--scenes", default="1000,20000", help="sizes for `memory`")
    parser.add_argument("--config", default=str(ROOT / "configs" / "embedded.py"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/embedded"), help="with a text encoder and latents")
    parser.add_argument("--steps", type=int, default=10, help="train steps that are timed")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    args = parser.parse_args()
    compile_cache.enable()
    rows: list[dict] = []
    for part in args.parts.split(","):
        if part == "memory":
            measure_memory(rows, [int(n) for n in args.scenes.split(",")])
        elif part == "pipeline":
            measure_pipeline(rows, args.config, args.workdir, args.steps)
        elif part in ("features", "render", "coding"):
            globals()[f"measure_{part}"](rows)
        else:
            parser.error(f"--parts {part!r}: features, render, coding, memory or pipeline")
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    for row in rows:
        print(row["what"])
        for name, value in row.items():
            if name != "what":
                print(f"  {name:24} {value:.4g}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
