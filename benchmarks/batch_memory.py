"""Show that memory does not grow with the number of prompts: `python benchmarks/batch_memory.py --prompts 2000`.

Runs `python -m dualspec_jax.sample --prompts-file` as a process of its own and prints its resident memory at each tenth
of the clips, counted by the files that are there. Few steps are enough: memory does not depend on them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dualspec_jax.prompt_set import LABELS


def resident_mib(pid: int) -> float:
    """Return a process's resident memory, MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=2000, help="lines of the prompts file (default 2000)")
    p.add_argument("--steps", type=int, default=2, help="of the sampler (default 2)")
    p.add_argument("--batch-size", type=int, default=8, help="clips made at once (default 8)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts, out = Path(folder, "prompts.txt"), Path(folder, "clips")
        lines = (f"{LABELS[i % len(LABELS)]} at {i * 7 % 360} degrees" for i in range(args.prompts))
        prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "dualspec_jax.sample", "--prompts-file", str(prompts), "--out", str(out)]
        command += ["--steps", str(args.steps), "--batch-size", str(args.batch_size), "--format", "flac"]
        start, step, due = time.perf_counter(), max(args.prompts // 10, 1), max(args.prompts // 10, 1)
        process = subprocess.Popen(command)
        while process.poll() is None:
            time.sleep(0.2)
            made = sum(1 for _ in out.glob("*.flac"))
            if made >= due:
                print(
                    f"{made} clips: {resident_mib(process.pid):.0f} MiB, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
                due += step
        made = sum(1 for _ in out.glob("*.flac"))
        entries = len((out / "manifest.jsonl").read_text().splitlines())
        print(f"{made} clips, {entries} lines of the manifest, {time.perf_counter() - start:.0f} s")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
