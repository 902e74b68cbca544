"""Make the gallery: `python -m dualspec_jax.gallery --hrtf H` writes docs/gallery.md and its twelve pictures."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dualspec_jax import metrics
from dualspec_jax.flag_types import guarded

# One line each of the three ways to name a direction, and of sounds with and without harmonics; fixed seeds, no choice.
PROMPTS = (
    "a dog barking at 10 o'clock",
    "rain to the right",
    "a rooster crowing on my left",
    "sea waves in front of me",
    "a baby crying at 45 degrees",
    "a clock ticking at 2 o'clock",
    "someone sneezing behind me",
    "a helicopter to the front right",
    "a chainsaw at 240 degrees",
    "fire crackling at 7 o'clock",
    "footsteps to the back left",
    "thunder at 9 o'clock",
)
WINDOW_S, HOP_S = 0.32, 0.16  # of the cues over time
FAINT_DB = 40.0  # windows this far below the loudest show no cue


def cues_over_time(waveform: np.ndarray, sample_rate: int) -> dict[str, np.ndarray]:
    """Return `time_s`, `itd_us` and `ild_db` of [N, 2] in windows of WINDOW_S; NaN in windows that are faint."""
    size, hop = round(WINDOW_S * sample_rate), round(HOP_S * sample_rate)
    starts = np.arange(0, len(waveform) - size + 1, hop)
    windows = [waveform[s : s + size] for s in starts]
    power = np.array([np.mean(w**2) for w in windows])
    heard = power > np.max(power) * 10 ** (-FAINT_DB / 10)
    cue = lambda f: np.array([f(w, sample_rate) if h else np.nan for w, h in zip(windows, heard, strict=True)])
    return {
        "time_s": (starts + size / 2) / sample_rate,
        "itd_us": cue(metrics.itd_us),
        "ild_db": cue(metrics.ild_db),
    }


def draw_clip(path: Path, waveform: np.ndarray, mel: np.ndarray, sample_rate: int, target: tuple[float, float]) -> None:
    """Draw the log-mels of both ears over ITD and ILD against time.

    Args:
      mel: [T, M, 2], nepers; both ears are drawn on the scale of the louder one.
      target: ITD (us) and ILD (dB) of the head in the direction asked for, drawn as lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((9.0, 2.6), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["left", "itd"], ["right", "ild"]], width_ratios=(3, 2))
    seconds = len(waveform) / sample_rate
    high = float(np.quantile(mel, 0.999))
    for channel, name in enumerate(("left", "right")):
        extent = (0.0, seconds, 0, mel.shape[1])
        axes[name].imshow(mel[..., channel].T, origin="lower", aspect="auto", cmap="magma", vmin=high - 8, vmax=high,
                          extent=extent)  # fmt: skip
        axes[name].set(ylabel=f"{name}\nMel band")
    cues = cues_over_time(waveform, sample_rate)
    for name, field, label, limit, value in (
        ("itd", "itd_us", "ITD, us", 900, target[0]),
        ("ild", "ild_db", "ILD, dB", 30, target[1]),
    ):
        axes[name].axhline(value, color="0.6", lw=1)
        axes[name].plot(cues["time_s"], cues[field], ".-", ms=4, lw=0.8)
        axes[name].set(ylabel=label, ylim=(-limit, limit), xlim=(0, seconds))
    axes["left"].set(xticks=[])
    axes["itd"].set(xticks=[])
    axes["right"].set(xlabel="s")
    axes["ild"].set(xlabel="s")
    figure.savefig(path, metadata={"Software": None})


def make_gallery(folder: Path, bundle: Any, hrtf: Any, prompts: tuple[str, ...] = PROMPTS) -> list[dict]:
    """Generate a clip per prompt (seeds 0, 1, ...; words alone), measure it, write gallery.md and its pictures.

    Args:
      folder: where gallery.md and gallery/*.png go; both are replaced.
      hrtf: `spatial.hrtf.Hrtf` at the bundle's rate, for measured azimuths and the heads' own cues.

    Raises:
      ValueError: a prompt that names no direction.
    """
    from dualspec_jax.clip_judge import ClipJudge
    from dualspec_jax.generate import Generator
    from dualspec_jax.ops.mel import log_mel, mel_filters
    from dualspec_jax.ops.stft import stft
    from dualspec_jax.prompts import Request
    from dualspec_jax.spatial.direction import parse_direction
    from dualspec_jax.wav import peak_gain

    directions = [parse_direction(prompt) for prompt in prompts]
    for prompt, direction in zip(prompts, directions, strict=True):
        if direction is None:
            raise ValueError(f"prompt = {prompt!r}: must name a direction")
    asked = [direction.azimuth_deg for direction in directions]
    audio = bundle.config.audio
    generator = Generator(bundle, batch_size=min(4, len(prompts)))
    clips = generator([Request(prompt, seed) for seed, prompt in enumerate(prompts)])
    waveforms = np.stack([clip * np.float32(peak_gain(clip)) for clip in clips])
    judge = ClipJudge(hrtf, audio, None, (), batch_size=len(prompts))
    records = judge(waveforms, asked, prompts)
    size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    filters = mel_filters(audio)
    mels = np.asarray(log_mel(stft(waveforms, **size), filters, audio.mel_floor))
    pictures = folder / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    blocks = []
    for i, (prompt, record) in enumerate(zip(prompts, records, strict=True)):
        target = judge.target_cues(float(asked[i]))
        draw_clip(pictures / f"{i:02d}.png", waveforms[i], mels[i], audio.sample_rate, target)
        blocks.append(
            f"## {prompt}\n\nSeed {i}. Asked {asked[i]:g} deg, measured {round(record['measured_deg']) % 360} deg; ITD "
            f"{record['itd_us']:.0f} us (head: {target[0]:.0f}), ILD {record['ild_db']:.1f} dB "
            f"(head: {target[1]:.1f}), peak {record['peak_dbfs']:.1f} dBFS.\n\n"
            f"![spectrograms, ITD and ILD](gallery/{i:02d}.png)\n"
        )
    head = (
        "# Gallery\n\nTwelve prompts, words alone, one seed each: nothing was chosen by hand. Left ear over right ear; "
        "beside them the interaural time and level differences of windows of 0.32 s, with those of the head in the "
        f"asked direction as a grey line. The head: {hrtf.name}; another than the "
        f"model's own mirrors some directions, front to back. Bundle `{bundle.digest[:12]}`; made by "
        "`python -m dualspec_jax.gallery`.\n\n"
    )
    (folder / "gallery.md").write_text(head + "\n".join(blocks))
    return records


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.gallery", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("docs"), help="folder for gallery.md and gallery/ (default: docs)")
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument(
        "--hrtf", type=Path, help="SOFA file to measure against (default: that of $DUALSPEC_DATA, else a sphere)"
    )
    return guarded(_run, p.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    if not args.out.is_dir():
        raise ValueError(f"out = {str(args.out)!r}: no such folder")
    from dualspec_jax import compile_cache
    from dualspec_jax.bundle import load_bundle
    from dualspec_jax.spatial.hrtf import default_hrtf

    compile_cache.enable()
    bundle = load_bundle(args.bundle)
    make_gallery(args.out, bundle, default_hrtf(args.hrtf, bundle.config.audio.sample_rate))
    print(args.out / "gallery.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
