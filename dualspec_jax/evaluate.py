"""Measure how good a model is: `python -m dualspec_jax.evaluate --data ROOT --out DIR`.

Rows: `real` (unseen recordings rendered with the HRTF: the upper bound), `round_trip` (those through the features and
the VAEs: the floor of the system), `numeric` and `words` (generated clips, see `prompt_set.py`), `cascade` (those of
`numeric` made mono and placed by HRTF convolution). `--wav-dir` measures stereo files of any other system.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from dualspec_jax.config import SOLVERS, VOCODERS
from dualspec_jax.flag_types import guarded, parse_guidance
from dualspec_jax.prompt_set import ROWS as GENERATED_ROWS
from dualspec_jax.prompt_set import SETS, labels_of, limit_evenly, make_prompts
from dualspec_jax.prompt_set import to_json as prompts_to_json

ROWS = ("real", "round_trip", *GENERATED_ROWS, "cascade")
PICTURE_AZIMUTHS_DEG = (60.0, 45.0)  # of the generated clips in spectrograms.png, as the prompt set has them


def parse_rows(text: str) -> tuple[str, ...]:
    """Read "real,words" as a tuple, in the order of ROWS."""
    rows = [row.strip() for row in text.split(",") if row.strip()]
    if not rows or not set(rows) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"{text!r}: a comma-separated list of {', '.join(ROWS)}")
    return tuple(row for row in ROWS if row in rows)


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.evaluate", description=__doc__.split("\n")[0])
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument("--data", type=Path, help="folder with events/ and hrtf/ (default: $DUALSPEC_DATA)")
    p.add_argument(
        "--hrtf", type=Path, help="HRTF file to measure against (default: the first hrtf/*.sofa of the data)"
    )
    p.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for the results (default: %(default)s)")
    p.add_argument("--classifier", type=Path, help="event classifier (default: that of the package)")
    p.add_argument("--localiser", type=Path, help="second localiser, a network (default: that of the package)")
    p.add_argument(
        "--rows", type=parse_rows, help=f"what to measure (default: {','.join(ROWS)}; with --wav-dir: the files only)"
    )
    p.add_argument("--wav-dir", type=Path, help="also measure the stereo WAV files of this folder")
    p.add_argument(
        "--azimuths",
        type=Path,
        help="CSV (file, azimuth_deg, label) for --wav-dir (default: in the names, x_true210.wav)",
    )
    p.add_argument(
        "--prompt-set", choices=SETS, default="ten", help="prompts of the generated rows (default %(default)s)"
    )
    p.add_argument("--quick", action="store_true", help="the same as --prompt-set quick: 120 prompts in all")
    p.add_argument(
        "--copying",
        action="store_true",
        help="also tell how near clips are to the training recordings of the sounds",
    )
    p.add_argument("--rooms", action="store_true", help="real and round_trip only: the recordings in random rooms")
    p.add_argument("--clap", type=Path, help="folder of a CLAP model for `transformers`: also measure with it")
    p.add_argument("--limit", type=int, help="at most this many clips per row, spread over sounds and directions")
    p.add_argument("--batch-size", type=int, default=8, help="clips made and measured at once (default 8)")
    p.add_argument("--steps", type=int, help="sampler steps (default: the bundle's)")
    p.add_argument("--solver", choices=SOLVERS, help="of the sampler (default: the bundle's)")
    p.add_argument("--spacing", type=float, help="of the sampler's steps, 1 to 4 (default: the bundle's)")
    p.add_argument("--guidance", type=parse_guidance, metavar="MEL[,STFT]", help="guidance scales; 1 is none")
    p.add_argument("--direction-noise", type=float, help="0: directions as generated (default: the bundle's)")
    p.add_argument("--as-written", action="store_true", help="leave the words for the sound (default: the bundle's)")
    p.add_argument(
        "--event-guidance", type=float, help="pull towards the named sound; 0 is none (default: the bundle's)"
    )
    p.add_argument(
        "--tries", type=int, help="at most, at a clip that comes out silent or as another sound (default: the bundle's)"
    )
    p.add_argument(
        "--accept", type=float, help="probability of the named sound that needs no more tries (default: the bundle's)"
    )
    p.add_argument("--vocoder", choices=VOCODERS, help="default: neural if the bundle has it, else griffin_lim_stft")
    p.add_argument("--text-only", action="store_true", help="do not read the words as a number beside the text encoder")
    p.add_argument("--seed", type=int, default=0, help="clip i gets seed + i (default 0)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    return guarded(_run, args, "the same command goes on from here")


def _check(args: argparse.Namespace) -> tuple[Path | None, Path]:
    """Return (data root or None, HRTF file) and make the output folder.

    Raises:
      ValueError: a number out of range, missing data or HRTF, or an output folder that cannot be made.
    """
    if args.quick:
        args.prompt_set = "quick"
    if args.rows is None:
        args.rows = ROWS if args.wav_dir is None else ()
    others = [*(row for row in args.rows if row not in ("real", "round_trip")), *["--wav-dir"] * bool(args.wav_dir)]
    if args.rooms and others:
        raise ValueError(f"rooms: goes with rows real and round_trip, not with {','.join(others)}")
    if args.azimuths is not None and args.wav_dir is None:
        raise ValueError(f"azimuths = {str(args.azimuths)!r}: goes with --wav-dir")
    if args.batch_size < 1:
        raise ValueError(f"batch-size = {args.batch_size}: must be at least 1")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"limit = {args.limit}: must be at least 1")
    if not 0 <= args.seed <= 2**31:
        raise ValueError(f"seed = {args.seed}: must be in [0, 2^31]")
    root = args.data or (Path(os.environ["DUALSPEC_DATA"]) if os.environ.get("DUALSPEC_DATA") else None)
    if root is not None and not root.is_dir():
        raise ValueError(f"data = {str(root)!r}: no such folder")
    if root is None and {"real", "round_trip"} & set(args.rows):
        raise ValueError("data: rows real and round_trip need --data ROOT or $DUALSPEC_DATA")
    if root is None and args.copying:
        raise ValueError("data: --copying needs --data ROOT or $DUALSPEC_DATA")
    hrtf = args.hrtf or next(iter(sorted((root / "hrtf").glob("*.sofa"))) if root else iter(()), None)
    if hrtf is None:
        raise ValueError("hrtf: give --hrtf FILE, or --data ROOT with a SOFA file in its hrtf/")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"out = {str(args.out)!r}: cannot be made ({e.strerror or e})") from e
    if not os.access(args.out, os.W_OK):
        raise ValueError(f"out = {str(args.out)!r}: cannot be written")
    return root, hrtf


def _run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    root, hrtf_path = _check(args)
    labels = labels_of(args.prompt_set)

    from dualspec_jax import compile_cache, event_sets, figures, report
    from dualspec_jax.bundle import load_bundle
    from dualspec_jax.clap_metrics import ClapJudge
    from dualspec_jax.clip_judge import ClipJudge
    from dualspec_jax.copying import load_copy_index
    from dualspec_jax.evaluation import (
        ClipStore,
        add_clap_scores,
        measure_cascade,
        measure_folder,
        measure_generated,
        measure_real,
    )
    from dualspec_jax.event_metrics import CLASSIFIER, load_classifier
    from dualspec_jax.generate import Generator
    from dualspec_jax.network_localiser import LOCALISER, load_localiser
    from dualspec_jax.real_scenes import load_scenes, recorded_labels
    from dualspec_jax.spatial.hrtf import load_hrtf
    from dualspec_jax.vocoders import default_vocoder
    from dualspec_jax.wav import read_wav, write_atomically
    from dualspec_jax.wav_folder import list_clips

    compile_cache.enable()
    clap = None if args.clap is None else ClapJudge(args.clap)
    bundle = load_bundle(args.bundle)
    audio, vocoder = bundle.config.audio, args.vocoder or default_vocoder(bundle)
    hrtf = load_hrtf(hrtf_path, audio.sample_rate)
    classifier, localiser = load_classifier(args.classifier), load_localiser(args.localiser)
    copies = load_copy_index(root, labels, audio) if args.copying else None
    judge = ClipJudge(hrtf, audio, classifier, labels, args.batch_size, localiser, copies, args.rooms)
    settings = {
        "seed": args.seed,
        "rooms": args.rooms,
        "text_only": args.text_only,
        "vocoder": vocoder,
        "batch_size": args.batch_size,
        "limit": args.limit,
    }

    systems: dict[str, list[dict]] = {}
    if args.wav_dir is not None:
        clips = limit_evenly(list_clips(args.wav_dir, args.azimuths), args.limit)
        systems["files"] = measure_folder(judge, clips)
    pictures: dict[str, dict] = {label: {} for label in labels}
    seconds: dict[str, float] = {}
    if {"real", "round_trip"} & set(args.rows):
        unseen = recorded_labels(root, labels) or labels  # none: `load_scenes` says so
        scenes = limit_evenly(load_scenes(root, unseen, audio.n_samples, args.seed), args.limit)
        staged = vocoder if "round_trip" in args.rows else None
        systems |= measure_real(
            bundle, judge, scenes, real="real" in args.rows, vocoder=staged, seed=args.seed, rooms=args.rooms
        )
        for scene in scenes:
            if not pictures[scene.label]:
                pictures[scene.label]["real"] = judge.content_mel(scene.render(hrtf, args.seed if args.rooms else None))
    generated = [row for row in args.rows if row in GENERATED_ROWS]
    if generated or "cascade" in args.rows:
        guidance = args.guidance or (None, None)
        generator = Generator(
            bundle,
            steps=args.steps,
            guidance_mel=guidance[0],
            guidance_stft=guidance[1],
            vocoder=vocoder,
            solver=args.solver,
            spacing=args.spacing,
            direction_noise=args.direction_noise,
            reword=False if args.as_written else None,
            event_guidance=args.event_guidance,
            tries=args.tries,
            accept=args.accept,
            batch_size=args.batch_size,
        )
        store = ClipStore(args.out / "wav", generator, args.seed, args.prompt_set, args.text_only)
        settings |= store.settings
        for row in generated:
            prompts = limit_evenly(make_prompts(row, args.prompt_set), args.limit)
            seconds[row] = store.generate(prompts, row)
            systems[row] = measure_generated(judge, store, prompts, row)
            if clap is not None:
                add_clap_scores(clap, store, prompts, systems[row])
            for prompt in sorted(prompts, key=lambda p: p.azimuth_deg not in PICTURE_AZIMUTHS_DEG):
                if row not in pictures[prompt.label]:
                    pictures[prompt.label][row] = judge.content_mel(read_wav(store.path(prompt))[0])
        if "cascade" in args.rows:
            prompts = limit_evenly(make_prompts("numeric", args.prompt_set), args.limit)
            seconds.setdefault("numeric", store.generate(prompts, "numeric"))
            systems["cascade"] = measure_cascade(judge, store, prompts)

    sets = event_sets.compare(systems)
    columns = report.COLUMNS + report.MORE_COLUMNS + report.STAGE_COLUMNS
    summaries = {n: report.summarise(r, columns, args.seed) for n, r in systems.items()}
    if "words" in systems:
        spreads = report.wording_spreads(systems["words"])
        summaries["words"] |= report.summarise(spreads, report.MORE_COLUMNS, args.seed) if spreads else {}
    audible = {n: [r for r in records if not r["silent"]] for n, records in systems.items()}
    content = {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.digest,
        "hrtf": hrtf.name,
        "classifier": str(args.classifier or CLASSIFIER),
        "localiser": str(args.localiser or LOCALISER),
        "settings": settings,
        "prompt_set": prompts_to_json(args.prompt_set),
        "event_sets": sets,
        "seconds_per_clip": seconds,
        "seconds": time.perf_counter() - start,
        "systems": {
            name: {
                "n": len(records),
                "summary": summaries[name],
                "audible_only": report.summarise(audible[name], report.COLUMNS, args.seed) if audible[name] else {},
                "by_label": report.by_group(records, "label"),
                "by_style": report.by_group(records, "style") if name in GENERATED_ROWS else {},
                "clips": records,
            }
            for name, records in systems.items()
        },
    }
    text = report.to_json(content)
    write_atomically(args.out / "report.json", lambda f: f.write(text.encode()))
    try:
        figures.draw_azimuth(args.out / "azimuth.png", systems, judge.target_cues)
        figures.draw_polar(args.out / "polar.png", systems)
        named = {name: rows for name, rows in systems.items() if all(r["label"] in labels for r in rows)}
        if named:
            figures.draw_events(args.out / "events.png", named, labels)
        titles = [c for c in ("real", *GENERATED_ROWS) if any(c in p for p in pictures.values())]
        if titles:
            figures.draw_spectrograms(args.out / "spectrograms.png", pictures, titles)
    except OSError as e:
        raise ValueError(f"out = {str(args.out)!r}: a figure cannot be written ({e.strerror or e})") from e
    counts = {name: len(records) for name, records in systems.items()}
    print(report.format_table(summaries, counts, report.COLUMNS))
    print("\nmore on directions, and on events beside those of the real clips")
    print(report.format_table(summaries, counts, report.MORE_COLUMNS))
    print("\nsets of clips, by the classifier's last layer")
    print(event_sets.format_table(sets))
    stages = {name: s for name, s in summaries.items() if "resynthesis_l1" in s}
    if stages:
        print("\nspectrograms and cues against the same real clip")
        print(report.format_table(stages, counts, report.STAGE_COLUMNS))
    for row, value in seconds.items():
        print(f"{row}: {value:.2f} s per clip at {settings['steps']} steps, batches of {args.batch_size}")
    print(f"{args.out / 'report.json'} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
