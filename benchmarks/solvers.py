"""Measure solver x steps against direction, event and time: `python benchmarks/solvers.py --out runs/solvers`.

Each point makes the same prompts with the same noise and is judged as in `dualspec_jax.evaluate`; clips are kept under
--out, so that the same command goes on after a break. Time is that of whole batches, compilation left out.
"""

import argparse
import itertools
from pathlib import Path

from dualspec_jax import compile_cache, report
from dualspec_jax.bundle import load_bundle
from dualspec_jax.clip_judge import ClipJudge
from dualspec_jax.config import SOLVERS
from dualspec_jax.evaluation import ClipStore, measure_generated
from dualspec_jax.event_metrics import load_classifier
from dualspec_jax.generate import Generator
from dualspec_jax.prompt_set import SETS, labels_of, limit_evenly, make_prompts
from dualspec_jax.sample import parse_interval
from dualspec_jax.spatial.hrtf import default_hrtf
from dualspec_jax.wav import write_atomically


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument("--hrtf", type=Path, help="HRTF file to measure against (default: $DUALSPEC_DATA/hrtf/*.sofa)")
    p.add_argument("--classifier", type=Path, help="event classifier (default: the package's)")
    p.add_argument("--out", type=Path, default=Path("runs/solvers"), help="results (default %(default)s)")
    p.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS, help="default: all")
    p.add_argument("--steps", nargs="+", type=int, default=[6, 8, 10, 12, 16, 25], help="default: %(default)s")
    p.add_argument("--spacings", nargs="+", type=float, help="of the steps, 1 to 4 (default: the bundle's)")
    p.add_argument("--intervals", nargs="+", type=parse_interval, default=[(0.0, 1.0)], help="guided noise levels")
    p.add_argument("--row", choices=("numeric", "words"), default="words", help="prompts (default %(default)s)")
    p.add_argument("--prompt-set", choices=SETS, default="ten", help="default: %(default)s")
    p.add_argument("--limit", type=int, default=40, help="prompts, spread over sounds and directions (default 40)")
    p.add_argument("--batch-size", type=int, default=8, help="clips made at once (default 8)")
    p.add_argument("--seed", type=int, default=0, help="clip i gets seed + i (default 0)")
    return p


def main() -> None:
    args = make_parser().parse_args()
    compile_cache.enable()
    bundle = load_bundle(args.bundle)
    audio = bundle.config.audio
    hrtf = default_hrtf(args.hrtf, audio.sample_rate)
    labels = labels_of(args.prompt_set)
    judge = ClipJudge(hrtf, audio, load_classifier(args.classifier), labels, batch_size=args.batch_size)
    prompts = limit_evenly(make_prompts(args.row, args.prompt_set), args.limit)
    base = Generator(bundle, batch_size=args.batch_size)
    args.out.mkdir(parents=True, exist_ok=True)
    summaries, seconds = {}, {}
    spacings = args.spacings or [base.spacing]
    for interval, spacing, steps, solver in itertools.product(args.intervals, spacings, args.steps, args.solvers):
        name = f"{solver} {steps} spacing {spacing:g}"
        name += f" {interval[0]:g}-{interval[1]:g}" if interval != (0.0, 1.0) else ""
        generator = base.with_settings(solver=solver, steps=steps, spacing=spacing, guidance_interval=interval)
        store = ClipStore(args.out / "wav", generator, args.seed, args.prompt_set)
        seconds[name] = store.generate(prompts, args.row)
        records = measure_generated(judge, store, prompts, args.row)
        summaries[name] = report.summarise(records, report.COLUMNS, args.seed)
        content = report.to_json({"seconds_per_clip": seconds, "systems": summaries, "limit": args.limit})
        write_atomically(args.out / "solvers.json", lambda f, text=content: f.write(text.encode()))
    print(report.format_table(summaries, dict.fromkeys(summaries, len(prompts)), report.COLUMNS))
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s a clip, batches of {args.batch_size}")


if __name__ == "__main__":
    main()
