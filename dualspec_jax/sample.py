"""Make sounds from prompts: `python -m dualspec_jax.sample --prompt "a dog barking at 10 o'clock"`."""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dualspec_jax import __version__
from dualspec_jax.config import SOLVERS, VOCODERS
from dualspec_jax.flag_types import guarded, parse_guidance, warn
from dualspec_jax.interrupt import leave, run_interruptibly
from dualspec_jax.prompts import MAX_CHARACTERS, Request, Row, count_rows, read_rows, read_scene, slug
from dualspec_jax.spatial.direction import validate_azimuth
from dualspec_jax.wav import FORMATS, atomic_file, suffix_of

_START = time.perf_counter()
MANIFEST = "manifest.jsonl"
TOGETHER = 4  # batches asked for at once: clips that are made again then fill batches with new ones
SUFFIXES = (".wav", ".flac")


def parse_interval(text: str) -> tuple[float, float]:
    """Read "LOW,HIGH", two rising numbers in [0, 1]."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0.0 <= low <= high <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: two rising numbers in [0, 1], as in 0.2,0.9")
    return low, high


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.sample", description=__doc__)
    a = p.add_argument_group("what to make").add_argument
    a("--prompt", action="append", help="what to hear and where; may be given several times")
    a("--prompts-file", type=Path, help="one prompt a line (txt), or .csv or .jsonl with prompt, azimuth, seed, name")
    a("--azimuth", type=float, help="degrees, 0 front, 90 left, 180 behind, 270 right (default: by words)")
    a("--negative-prompt", default="", help="what to move away from (default: nothing)")
    a("--seed", type=int, default=0, help="seed of the first clip; clip i gets seed + i (default 0)")
    a("--num", type=int, default=1, help="clips per prompt (default 1)")
    a("--duration", type=float, help="seconds; a shorter clip is cut with a fade (default: all the model makes, 5.12)")
    a("--best-of", type=int, default=1, help="make this many for each clip and keep the best (default 1)")
    a("--normalise", type=float, metavar="LUFS", help="loudness of the clips, such as -23 (default: as generated)")
    a = p.add_argument_group("how to make it").add_argument
    a("--steps", type=int, help="evaluations of the denoiser (default: the bundle's)")
    a("--solver", choices=SOLVERS, help="default: the bundle's")
    a("--spacing", type=float, help="of the steps, 1 to 4: above 1, more at high noise (default: the bundle's)")
    a("--guidance", type=parse_guidance, metavar="MEL[,STFT]", help="scales, 1 is none (default: the bundle's)")
    a("--guidance-interval", type=parse_interval, metavar="LOW,HIGH", help="noise levels that are guided (default 0,1)")
    a("--eta", type=float, help="sampling noise of solver ddim, 0 to 1 (default: the bundle's, 0)")
    a("--direction-noise", type=float, help="0: leave the direction as generated; more: bring it to the one asked for")
    a("--as-written", action="store_true", help="leave new words for a known sound; default: they become its label")
    a("--event-guidance", type=float, help="pull towards the named sound; 0 is none (default: the bundle's)")
    a(
        "--tries",
        type=int,
        help="at most, at a clip that comes out silent or as another sound (default: the bundle's, 3)",
    )
    a("--accept", type=float, help="probability of the named sound that needs no more tries (default: the bundle's)")
    a("--vocoder", choices=VOCODERS, help="Griffin-Lim, from both branches or Mel, or neural (default if there is one)")
    a("--batch-size", type=int, default=1, help="clips made at once (default 1)")
    a("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    a("--hrtf", type=Path, help="SOFA or npz file that the azimuth is measured with (default: a trained localiser)")
    a = p.add_argument_group("where to put it").add_argument
    a("--out", type=Path, default=Path("."), help="audio file, or a folder (default: this folder)")
    a("--format", choices=FORMATS, help="16-bit WAV, float WAV or 16-bit FLAC (default: by --out's suffix, else wav)")
    a("--spectrogram", type=Path, help="also write a PNG of both ears")
    group = p.add_mutually_exclusive_group()
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument("--skip-existing", action="store_true", help="make only what is missing: goes on after a break")
    p.add_argument("--profile", action="store_true", help="print where the time went")
    p.add_argument("--list-sounds", action="store_true", help="print the sounds the bundle knows, and stop")
    p.add_argument("--version", action="version", version=__version__)
    return p


@dataclass(frozen=True)
class Task:
    """One clip to make and the path of its audio file, or the reason why not."""

    row: Row
    request: Request
    path: Path
    problem: str | None = None


class Plan:
    """Turn rows into tasks, checking each against the rules, the files that are there and the names used so far."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.azimuth = None if args.azimuth is None else validate_azimuth(args.azimuth)
        self.is_file = args.out.suffix.lower() in SUFFIXES
        if args.format is not None and self.is_file and args.out.suffix.lower() != suffix_of(args.format):
            rule = f"format {args.format} needs the suffix {suffix_of(args.format)}"
            raise ValueError(f"out = {str(args.out)!r}: {rule}")
        self.folder = args.out.parent if self.is_file else args.out
        self._names: set[bytes] = set()

    def tasks(self, rows: Iterable[Row], first: int = 0) -> Iterator[Task]:
        """Yield the tasks of rows one by one: memory does not grow with their number, but for a few bytes a name."""
        for i, row in enumerate(rows, first):
            for j in range(self.args.num):
                yield self._task(row, i, j)

    def _task(self, row: Row, i: int, j: int) -> Task:
        seed = self.args.seed + i * self.args.num + j if row.seed is None else row.seed + j
        if len(row.prompt) > MAX_CHARACTERS:
            warn(f"prompt of {len(row.prompt)} characters is cut to {MAX_CHARACTERS}")
            row = replace(row, prompt=row.prompt[:MAX_CHARACTERS])
        azimuth = self.azimuth if row.azimuth_deg is None else row.azimuth_deg
        negative = self.args.negative_prompt if row.negative_prompt is None else row.negative_prompt
        request = Request(row.prompt, seed, azimuth, negative)
        name = f"{slug(row.prompt)}_seed{seed}" if row.name is None else row.name + (f"_{j}" if j else "")
        path = self.args.out if self.is_file else self.folder / (name + suffix_of(self.args.format))
        return Task(row, request, path, row.problem or self._problem(request, path))

    def _problem(self, request: Request, path: Path) -> str | None:
        try:
            read_scene(request.prompt, request.azimuth_deg)
        except ValueError as e:
            return str(e)
        if not 0 <= request.seed < 2**32:
            return f"seed = {request.seed}: must be in [0, 2^32)"
        key = hashlib.blake2b(str(path).encode(), digest_size=8).digest()
        if key in self._names:
            return f"out = {str(path)!r}: two clips of this run have this name"
        self._names.add(key)
        if not (self.args.overwrite or self.args.skip_existing):
            for existing in (path, path.with_suffix(".json")):
                if existing.exists():
                    return f"out = {str(existing)!r}: exists already; --overwrite replaces it, --skip-existing keeps it"
        return None


def is_done(path: Path, identity: dict) -> bool:
    """Tell whether a clip is there already; a sound without its record is not, as the record is written last.

    Raises:
      ValueError: there is a clip of this name, but made from another request.
    """
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        record = None
    if not path.is_file():
        return False
    for name, value in identity.items():
        if not isinstance(record, dict) or record.get(name) != value:
            raise ValueError(f"out = {str(path)!r}: made with another {name}; --overwrite replaces it")
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 where lines of a prompts file failed, 2 for a mistake."""
    args = make_parser().parse_args(argv)
    again = "the same command with --skip-existing goes on from here" if args.prompts_file else ""
    return guarded(_run, args, again)


def _run(args: argparse.Namespace) -> int:
    if args.list_sounds:
        from dualspec_jax.bundle import load_bundle

        print("\n".join(load_bundle(args.bundle).labels))
        return 0
    for name in ("num", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} = {getattr(args, name)}: must be at least 1")
    plan = Plan(args)
    given = [Row(0, prompt) for prompt in args.prompt or []]
    total = (len(given) + (count_rows(args.prompts_file) if args.prompts_file else 0)) * args.num
    if not total:
        raise ValueError("prompt: give --prompt or a --prompts-file with at least one line")
    if plan.is_file and total > 1:
        raise ValueError(f"out = {str(args.out)!r}: {total} clips need a folder, not a file name")
    tasks = list(plan.tasks(given))
    for task in tasks:  # their mistakes are known before the model is loaded
        if task.problem:
            raise ValueError(task.problem)
    if args.prompts_file is not None:
        _make_folder(plan.folder)
    if not plan.folder.is_dir():
        raise ValueError(f"out = {str(args.out)!r}: the folder {str(plan.folder)!r} does not exist")
    if args.spectrogram is not None and not args.spectrogram.parent.is_dir():
        raise ValueError(f"spectrogram = {str(args.spectrogram)!r}: its folder does not exist")
    rows = read_rows(args.prompts_file) if args.prompts_file else ()
    return Run(args, total).make(itertools.chain(tasks, plan.tasks(rows, len(given))), plan.folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"out = {str(folder)!r}: cannot be made ({e.strerror or e})") from e


class Run:
    """Load the model once, then make the tasks batch by batch."""

    def __init__(self, args: argparse.Namespace, total: int):
        from dualspec_jax.pipeline import DualSpecPipeline

        self.args, self.total = args, total
        self.seconds: Counter[str] = Counter({"import": time.perf_counter() - _START})
        self.counts: Counter[str] = Counter()
        start = time.perf_counter()
        self.pipeline = DualSpecPipeline.from_pretrained(args.bundle, hrtf=args.hrtf)
        self.maker = self.pipeline.maker(
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            duration=args.duration,
            best_of=args.best_of,
            normalise=args.normalise,
            batch_size=args.batch_size,
            solver=args.solver,
            spacing=args.spacing,
            guidance_interval=args.guidance_interval,
            eta=args.eta,
            direction_noise=args.direction_noise,
            vocoder=args.vocoder,
            reword=False if args.as_written else None,
            event_guidance=args.event_guidance,
            tries=args.tries,
            accept=args.accept,
        )
        run_interruptibly(lambda: self.pipeline.self_check)
        self.seconds["load"] += time.perf_counter() - start

    def make(self, tasks: Iterator[Task], folder: Path) -> int:
        """Make all tasks; return the exit status. A prompts file gets a manifest, whole or not at all."""
        from tqdm import tqdm

        run_interruptibly(self.maker.generator.compile)
        with tqdm(total=self.total, unit="clip", desc="clips", disable=self.total == 1 or None) as bar:
            if self.args.prompts_file is None:
                self._make_all(tasks, bar, lambda **entry: None)
            else:
                with atomic_file(folder / MANIFEST) as f:
                    self._make_all(tasks, bar, lambda **e: f.write((json.dumps(e) + "\n").encode()))
        self._report(folder)
        return 1 if self.counts["failed"] else 0

    def _make_all(self, tasks: Iterator[Task], bar, note) -> None:
        batch: list[Task] = []
        for task in tasks:
            problem = task.problem
            if not problem:
                try:
                    self.maker.check(task.request)
                    if not self._skips(task, note):
                        batch.append(task)
                    else:
                        bar.update()
                except ValueError as e:
                    problem = str(e)
            if problem:
                self._fail(task, problem, note)
                bar.update()
            if len(batch) == self.args.batch_size * (TOGETHER if self.args.batch_size > 1 else 1):
                self._make_batches(batch, bar, note)
                batch = []
        if batch:
            self._make_batches(batch, bar, note)

    def _skips(self, task: Task, note) -> bool:
        if not (self.args.skip_existing and is_done(task.path, self.maker.identity(task.request))):
            return False
        self.counts["skipped"] += 1
        note(status="skipped", **_entry(task))
        return True

    def _fail(self, task: Task, problem: str, note) -> None:
        problem = " ".join(problem.split())
        if not task.row.line:
            raise ValueError(problem)
        print(f"error: line {task.row.line}: {problem}", file=sys.stderr)
        self.counts["failed"] += 1
        note(status="failed", error=problem, **_entry(task))

    def _make_batches(self, tasks: list[Task], bar, note) -> None:
        for task in tasks:
            self._comment(task.request)
        clips = self.maker.iterate([task.request for task in tasks])
        for task in tasks:
            start = time.perf_counter()
            clip = run_interruptibly(next, clips)
            made = time.perf_counter()
            self.seconds["make"] += made - start
            _make_folder(task.path.parent)
            clip.save(task.path, self.args.format)
            self.counts["made"] += 1
            note(status="made", measured=clip.measured, **_entry(task))
            written = [task.path, task.path.with_suffix(".json")]
            if self.args.spectrogram is not None:
                target = self.args.spectrogram
                if self.total > 1:
                    target = target.with_name(f"{target.stem}_{task.path.stem}{target.suffix}")
                _write_picture(target, clip.spectrogram())
                written.append(target)
            if self.args.prompts_file is None:
                print(*written, sep="\n")
            self.seconds["write"] += time.perf_counter() - made
            bar.update()

    def _comment(self, request: Request) -> None:
        from dualspec_jax.spatial.sounds import match_sound

        prompt, bundle = request.prompt, self.pipeline.bundle
        if read_scene(prompt, request.azimuth_deg).azimuth_deg is None:
            print(f"note: {prompt[:80]!r} names no direction: the direction is free")
        match = match_sound(prompt)
        if not match.known:
            taken = self.maker.generator.reword and match.label in bundle.labels
            instead = f", taken for {match.label!r}" if taken else ""
            near = ", ".join(match.near)
            warn(f"{prompt[:80]!r}: no sound I know{instead}; near ones: {near} (--list-sounds prints all)")
        if bundle.tokenizer.count(prompt) > bundle.config.text.max_length:
            warn(f"{prompt[:80]!r}: only the first {bundle.config.text.max_length - 1} tokens are read")

    def _report(self, folder: Path) -> None:
        counts, seconds = self.counts, self.seconds
        stages = self.maker.generator.seconds
        if self.args.prompts_file is not None:
            print(folder / MANIFEST)
        rest = [f"{counts[name]} {name}" for name in ("skipped", "failed") if counts[name]]
        print(
            f"{counts['made']} clip{'s' * (counts['made'] != 1)} in {time.perf_counter() - _START:.1f} s: "
            f"load {seconds['import'] + seconds['load']:.1f} s, compile {stages['compile']:.1f} s, "
            f"sample and write {seconds['make'] + seconds['write']:.1f} s" + "".join(f"; {text}" for text in rest)
        )
        if self.args.profile:
            inner = {name: stages[name] for name in ("encode", "sample", "rank", "decode", "vocode")}
            measure = {"measure": seconds["make"] - sum(inner.values())}
            table = {n: seconds[n] for n in ("import", "load")} | {"compile": stages["compile"]} | inner | measure
            table["write"] = seconds["write"]
            for name, value in table.items():
                print(f"{name:>8} {value:7.2f} s")
            print(f"{'other':>8} {time.perf_counter() - _START - sum(table.values()):7.2f} s")


def _entry(task: Task) -> dict:
    r = task.request
    return {
        "line": task.row.line,
        "file": str(task.path),
        "prompt": r.prompt,
        "azimuth_deg": r.azimuth_deg,
        "seed": r.seed,
    }


def _write_picture(path: Path, image) -> None:
    from dualspec_jax.picture import save_png

    try:
        save_png(path, image)
    except OSError as e:
        raise ValueError(f"cannot write {str(path)!r}: {e.strerror or e}") from e


if __name__ == "__main__":
    leave(main())
