"""Write a bank of mono events for training that renders on the device: python -m data.clip_bank --out DIR."""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.clips import find_usable, write_problems
from data.sources import read_source
from dualspec_jax.clip_bank import INDEX, LABELS, SAMPLES
from dualspec_jax.spatial.scene import load_clip, normalise_loudness, trim


def write_bank(root, out, licences=()) -> Path:
    """Trim every usable clip, bring it to one loudness and append it to the bank; `labels.json` comes last.

    Raises:
      ValueError: a bad source folder, or no usable clip.
    """
    out = Path(out)
    recordings = read_source(root, licences)
    labels = sorted({r.label for r in recordings})
    recordings, problems = find_usable(recordings)
    out.mkdir(parents=True, exist_ok=True)
    (out / LABELS).unlink(missing_ok=True)  # what is half written is no bank
    write_problems(out / "skipped_clips.csv", problems)
    start, raw = [0], out / "samples.partial"
    with open(raw, "wb") as file:
        for recording in tqdm(recordings, desc="clip bank", unit=" clips"):
            event = normalise_loudness(trim(load_clip(recording.path)))
            np.round(event * 32767).astype("<i2").tofile(file)
            start.append(start[-1] + len(event))
    samples = np.lib.format.open_memmap(out / SAMPLES, "w+", np.int16, (start[-1],))
    source = np.memmap(raw, "<i2", "r")
    for i in range(0, len(source), 1 << 24):
        samples[i : i + (1 << 24)] = source[i : i + (1 << 24)]
    samples.flush()
    raw.unlink()
    np.savez(
        out / INDEX,
        start=np.array(start, np.int64),
        label_index=np.array([labels.index(r.label) for r in recordings], np.int32),
        is_valid=np.array([r.split == "valid" for r in recordings]),
    )
    (out / LABELS).write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    return out


def main(argv=None) -> int:
    """Run the command line; return 2 after one clear line if the input is bad."""
    parser = argparse.ArgumentParser(prog="python -m data.clip_bank", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the bank")
    parser.add_argument("--manual_dir", help="source folder; default: $DUALSPEC_DATA")
    parser.add_argument("--licences", default="", help="keep only clips under these, for instance CC0,CC-BY")
    args = parser.parse_args(argv)
    root = args.manual_dir or os.environ.get("DUALSPEC_DATA")
    try:
        if not root:
            raise ValueError("no source folder: pass --manual_dir ROOT or set DUALSPEC_DATA=ROOT")
        print(write_bank(root, args.out, tuple(x.strip() for x in args.licences.split(",")) if args.licences else ()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
