"""Write metrics to metrics.jsonl and TensorBoard, without gaps or repeats when a run is resumed."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Window:
    """Running means of metrics; its sums survive JSON exactly, so a resumed window is the same window.

    Attributes:
      sums: {"count": steps, "total": {name: sum}}.
    """

    def __init__(self, sums: dict[str, Any] | None = None):
        self.sums = sums or {"count": 0, "total": {}}

    def add(self, values: dict[str, float]) -> None:
        total = self.sums["total"]
        self.sums = {
            "count": self.sums["count"] + 1,
            "total": {name: total.get(name, 0.0) + value for name, value in values.items()},
        }

    def take(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {name: value / self.sums["count"] for name, value in self.sums["total"].items()}
        self.sums = {"count": 0, "total": {}}
        return means


class Clock:
    """Speed since the last restart.

    Attributes:
      steps: done since then; counted by the caller.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self._waited, self._start = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """Return `steps_per_s` and `data_wait`, the fraction of the time spent waiting for data."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        return {"steps_per_s": self.steps / elapsed, "data_wait": self._waited / elapsed}


class MetricsLog:
    """The metrics of one training: <folder>/metrics.jsonl, and TensorBoard events beside it.

    A line is one JSON object with `step` and `time` (seconds since the epoch); validation has lines of its own, with
    names under `valid/`. The first `steps_per_s` of a run counts compilation. What is not finite is written as null.

    Attributes:
      evaluated: {step: its validation metrics}, those of before too; NaN for what was not finite.

    Args:
      folder: <workdir>/<task>.
      step: where the run starts; later lines, which a stopped run wrote after its last checkpoint, are removed.
      write: false only reads what is there, for all processes but the first.
    """

    def __init__(self, folder: Path, step: int, write: bool = True):
        path = folder / "metrics.jsonl"
        lines = read_lines(path, step)
        self.evaluated = {line["step"]: found for line in lines if (found := _validation(line))}
        self._file = self._events = None
        if write:
            from tensorboardX import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".jsonl.partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
            partial.replace(path)
            self._file = path.open("a")
            self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line of training metrics."""
        self._write(step, metrics)

    def valid(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line of validation metrics."""
        self._write(step, {f"valid/{name}": value for name, value in metrics.items()})
        self.evaluated[step] = metrics

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | finite) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
            self._events.close()


def _validation(line: dict[str, Any]) -> dict[str, float]:
    names = [name for name in line if name.startswith("valid/")]
    return {name.removeprefix("valid/"): math.nan if line[name] is None else line[name] for name in names}


def read_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the lines up to a step; none at step 0, where a training starts anew."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() and step > 0 else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while writing it
        if line["step"] <= step:
            lines.append(line)
    return lines
