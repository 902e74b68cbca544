"""Make sounds from prompts: `python -m dualspec_jax.sample --prompt "a dog barking at 10 o'clock"`."""

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

from dualspec_jax import __version__
from dualspec_jax.flag_types import VOCODERS, parse_guidance, warn
from dualspec_jax.spatial.direction import circular_difference, parse_direction, validate_azimuth

MAX_CHARACTERS = 1000


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.sample", description=__doc__)
    p.add_argument("--prompt", action="append", help="what to hear and where; may be given several times")
    p.add_argument("--prompts-file", type=Path, help="text file with one prompt a line; empty lines and # are skipped")
    p.add_argument("--out", type=Path, default=Path("."), help="WAV file, or an existing folder (default: this folder)")
    p.add_argument("--seed", type=int, default=0, help="seed of the first clip; clip i gets seed + i (default 0)")
    p.add_argument("--num", type=int, default=1, help="clips per prompt (default 1)")
    p.add_argument("--steps", type=int, help="DDIM steps (default: the bundle's)")
    p.add_argument("--guidance", type=parse_guidance, metavar="MEL[,STFT]", help="guidance scales; 1 is none")
    p.add_argument("--eta", type=float, help="DDIM noise, 0 (default) to 1")
    p.add_argument("--azimuth", type=float, help="degrees, 0 front, 90 left, 180 behind, 270 right (default: by words)")
    p.add_argument("--negative-prompt", default="", help="what to move away from")
    p.add_argument("--spectrogram", type=Path, help="also write a PNG of both ears")
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument(
        "--vocoder", choices=VOCODERS, default=VOCODERS[0], help="where magnitudes start (default %(default)s)"
    )
    p.add_argument("--batch-size", type=int, default=1, help="clips made at once (default 1)")
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    p.add_argument("--list-sounds", action="store_true", help="print the sounds the bundle knows, and stop")
    p.add_argument("--version", action="version", version=__version__)
    return p


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Return all prompts, cut to MAX_CHARACTERS with a warning.

    Raises:
      ValueError: none given, or an empty one.
    """
    prompts = list(args.prompt or [])
    if args.prompts_file is not None:
        try:
            lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"prompts-file = {str(args.prompts_file)!r}: cannot be read ({e})") from e
        prompts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise ValueError("prompt: give --prompt or a --prompts-file with at least one line")
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError("prompt = '': must name a sound, a direction or both")
        if len(prompt) > MAX_CHARACTERS:
            warn(f"prompt of {len(prompt)} characters is cut to {MAX_CHARACTERS}")
            prompts[i] = prompt[:MAX_CHARACTERS]
    return prompts


def check_direction(prompt: str, azimuth_deg: float | None):
    """Return the direction the words name, or None.

    Raises:
      ValueError: contradictory or unknown words, or words that contradict the numeric azimuth.
    """
    direction = parse_direction(prompt)
    if direction is None and azimuth_deg is None:
        print(f"note: {prompt[:80]!r} names no direction: the direction is free")
    if direction is not None and azimuth_deg is not None:
        off = abs(circular_difference(direction.azimuth_deg, azimuth_deg))
        if off > direction.tolerance_deg + 1e-6:
            words = f"{direction.text!r} ({direction.azimuth_deg:g} deg)"
            raise ValueError(f"azimuth = {azimuth_deg:g}: contradicts {words} in the prompt")
    return direction


def output_paths(out: Path, names: list[str], overwrite: bool) -> list[Path]:
    """Return the WAV path of each clip.

    Raises:
      ValueError: no such folder, several clips for one file name, or existing files without overwrite.
    """
    if out.suffix.lower() == ".wav":
        if len(names) > 1:
            raise ValueError(f"out = {str(out)!r}: {len(names)} clips need a folder, not a file name")
        paths = [out]
    else:
        paths = [out / f"{name}.wav" for name in names]
    folder = paths[0].parent
    if not folder.is_dir():
        raise ValueError(f"out = {str(out)!r}: the folder {str(folder)!r} does not exist")
    for path in paths:
        for existing in (path, path.with_suffix(".json")):
            if existing.exists() and not overwrite:
                raise ValueError(f"out = {str(existing)!r}: exists already; --overwrite replaces it")
    return paths


def slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "prompt"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    try:
        return _run(args)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    if args.list_sounds:
        from dualspec_jax.bundle import load_bundle

        print("\n".join(load_bundle(args.bundle).labels))
        return 0
    prompts = read_prompts(args)
    if args.num < 1:
        raise ValueError(f"num = {args.num}: must be at least 1")
    count = len(prompts) * args.num
    if not 0 <= args.seed <= 2**32 - count:
        raise ValueError(f"seed = {args.seed}: must be in [0, 2^32 - number of clips]")
    azimuth = None if args.azimuth is None else validate_azimuth(args.azimuth)
    directions = [check_direction(prompt, azimuth) for prompt in prompts]
    clips = [(i, prompt, args.seed + i * args.num + j) for i, prompt in enumerate(prompts) for j in range(args.num)]
    names = [f"{slug(prompt)}_seed{seed}" for _, prompt, seed in clips]
    paths = output_paths(args.out, names, args.overwrite)
    if args.spectrogram is not None and not args.spectrogram.parent.is_dir():
        raise ValueError(f"spectrogram = {str(args.spectrogram)!r}: its folder does not exist")

    from dualspec_jax import compile_cache, metrics
    from dualspec_jax.bundle import load_bundle
    from dualspec_jax.generate import Generator, Request
    from dualspec_jax.spatial.sounds import match_sound
    from dualspec_jax.wav import to_pcm16, write_atomically, write_wav

    compile_cache.enable()
    bundle = load_bundle(args.bundle)
    for prompt in prompts:
        match = match_sound(prompt, bundle.labels)
        if not match.known:
            warn(f"{prompt[:80]!r}: no sound I know; near ones: {', '.join(match.near)} (--list-sounds prints all)")
        if bundle.tokenizer.count(prompt) > bundle.config.text.max_length:
            warn(f"{prompt[:80]!r}: only the first {bundle.config.text.max_length - 1} tokens are read")
    guidance = args.guidance or (None, None)
    generator = Generator(
        bundle,
        steps=args.steps,
        guidance_mel=guidance[0],
        guidance_stft=guidance[1],
        eta=args.eta,
        vocoder=args.vocoder,
        batch_size=args.batch_size,
    )
    loaded = time.perf_counter()
    generator.compile()
    compiled = time.perf_counter()
    requests = [Request(prompt, seed, azimuth, args.negative_prompt) for _, prompt, seed in clips]
    rate = bundle.config.audio.sample_rate
    for (i, prompt, seed), path, waveform in zip(clips, paths, generator(requests), strict=True):
        pcm = to_pcm16(waveform).astype("float32") / 32767.0
        itd, ild = metrics.itd_us(pcm, rate), metrics.ild_db(pcm, rate)
        direction = directions[i]
        record = {
            "prompt": prompt,
            "negative_prompt": args.negative_prompt,
            "seed": seed,
            "steps": generator.steps,
            "guidance_mel": generator.guidance_mel,
            "guidance_stft": generator.guidance_stft,
            "eta": generator.eta,
            "vocoder": args.vocoder,
            "azimuth_deg": azimuth,
            "parsed_azimuth_deg": None if direction is None else direction.azimuth_deg,
            "parsed_style": None if direction is None else direction.style,
            "measured": {
                "itd_us": None if math.isnan(itd) else round(itd, 1),
                "ild_db": None if math.isnan(ild) else round(ild, 2),
                "peak": round(float(abs(pcm).max()), 4),
                "silent": bool(metrics.peak_dbfs(pcm) < metrics.SILENT_DBFS),
            },
            "sample_rate": rate,
            "bundle": str(bundle.path),
            "bundle_sha256": bundle.digest,
            "version": __version__,
        }
        text = json.dumps(record, indent=1) + "\n"
        write_wav(path, waveform, rate)
        try:
            write_atomically(path.with_suffix(".json"), lambda f, text=text: f.write(text.encode()))
        except ValueError:
            path.unlink()  # a sound without its record is half a result
            raise
        print(path)
        print(path.with_suffix(".json"))
        if args.spectrogram is not None:
            _write_picture(args.spectrogram, pcm, bundle.config.audio, path if len(clips) > 1 else None)
    end = time.perf_counter()
    print(
        f"{count} clip{'s' * (count > 1)} in {end - start:.1f} s: load {loaded - start:.1f} s, "
        f"compile {compiled - loaded:.1f} s, sample and write {end - compiled:.1f} s"
    )
    return 0


def _write_picture(target: Path, waveform, audio, clip: Path | None) -> None:
    """Write both ears' log-mel; with several clips each gets its own file, target's stem plus the clip's."""
    import numpy as np

    from dualspec_jax.ops.mel import log_mel, mel_filterbank
    from dualspec_jax.ops.stft import stft
    from dualspec_jax.picture import save_png, spectrogram_image

    size = {"n_fft": audio.n_fft, "hop_length": audio.hop_length, "n_frames": audio.n_frames, "n_bins": audio.n_bins}
    filters = mel_filterbank(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax, audio.n_bins)
    mel = np.asarray(log_mel(stft(waveform[None], **size), filters, audio.mel_floor))[0]
    path = target if clip is None else target.with_name(f"{target.stem}_{clip.stem}{target.suffix}")
    try:
        save_png(path, spectrogram_image(mel))
    except OSError as e:
        raise ValueError(f"cannot write {str(path)!r}: {e.strerror or e}") from e
    print(path)


if __name__ == "__main__":
    sys.exit(main())
