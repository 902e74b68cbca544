"""Measure the localisers on unseen recordings: `python -m dualspec_jax.localiser_report --data ROOT`.

Each recording of split `valid` is rendered in several directions with an HRTF, without a room and in random rooms (see
`spatial.echo`), and located by the template matcher (templates of the same HRTF) and by the network.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from dualspec_jax import metrics, report
from dualspec_jax.config import default
from dualspec_jax.network_localiser import CONFIDENT_DEG, NetworkLocaliser, load_localiser, read_azimuth
from dualspec_jax.ops.stft import stft
from dualspec_jax.prompt_set import LABELS, limit_evenly
from dualspec_jax.real_scenes import RealScene, load_scenes
from dualspec_jax.spatial.hrtf import Hrtf, load_hrtf
from dualspec_jax.wav import write_atomically

BATCH = 4
COLUMNS = (
    report.Column("azimuth_mae_deg", "az MAE", "azimuth_error_deg", format=".2f"),
    report.Column("azimuth_median_deg", "az med", "azimuth_error_deg", "median", format=".2f"),
    report.Column("lateral_mae_deg", "lat MAE", "lateral_error_deg", format=".2f"),
    report.Column("resolved_mae_deg", "f/b resolved", "resolved_error_deg", format=".2f"),
    report.Column("front_back_percent", "f/b %", "front_back", scale=100.0),
    report.Column("within_10_percent", "<10deg %", "within_10", scale=100.0),
    report.Column("confidence_percent", "confidence %", "confidence", scale=100.0),
    report.Column("calibration_percent", "calib err %", "calibration", scale=100.0),
)


def measure(
    scenes: list[RealScene], hrtf: Hrtf, localiser: NetworkLocaliser, audio, *, rooms: bool, seed: int
) -> dict[str, list[dict]]:
    """Return {"template": records, "network": records} of the scenes, one record each."""
    freqs = np.arange(audio.n_bins) * audio.sample_rate / audio.n_fft
    responses = hrtf.spectrum(np.arange(360.0), audio.n_fft, audio.n_bins)
    templates = metrics.TemplateLocaliser(responses, freqs, **metrics.IN_ROOMS)
    size = {name: audio[name] for name in ("n_fft", "hop_length", "n_frames", "n_bins")}
    analyse = jax.jit(lambda x: (lambda s: (s, localiser.logits(s)))(stft(x, **size)))
    records: dict[str, list[dict]] = {"template": [], "network": []}
    name = "rooms" if rooms else "anechoic"
    with tqdm(total=len(scenes), unit="clip", desc=name) as bar:
        for first in range(0, len(scenes), BATCH):
            batch = scenes[first : first + BATCH]
            waveforms = np.zeros((BATCH, audio.n_samples, 2), np.float32)
            for k, scene in enumerate(batch):
                waveforms[k] = scene.render(hrtf, seed if rooms else None)
            spec, logits = jax.device_get(analyse(waveforms))
            azimuths, confidences = read_azimuth(logits)
            for k, scene in enumerate(batch):
                found = {"template": (templates.locate(spec[k]), float("nan"))}
                found["network"] = (float(azimuths[k]), float(confidences[k]))
                for localiser_name, (azimuth, confidence) in found.items():
                    records[localiser_name].append(_record(scene, azimuth, confidence))
            bar.update(len(batch))
    for rows in records.values():
        _add_calibration(rows)
    return records


def _record(scene: RealScene, azimuth: float, confidence: float) -> dict:
    errors = {name: float(value) for name, value in metrics.azimuth_errors(azimuth, scene.azimuth_deg).items()}
    return {
        "unit": scene.file,
        "label": scene.label,
        "asked_deg": scene.azimuth_deg,
        "measured_deg": azimuth,
        "azimuth_error_deg": errors["azimuth"],
        "lateral_error_deg": errors["lateral"],
        "resolved_error_deg": errors["resolved"],
        "front_back": errors["front_back"],
        "within_10": float(metrics.circular_error(azimuth, scene.azimuth_deg) <= CONFIDENT_DEG),
        "confidence": confidence,
    }


def _add_calibration(records: list[dict], bins: int = 5) -> None:
    """Add to each record the difference of confidence and share of hits in its bin: their mean is the expected
    calibration error."""
    confidence = report.values_of(records, "confidence")
    if np.isnan(confidence).all():
        return
    hits = report.values_of(records, "within_10")
    ranks = np.argsort(np.argsort(confidence, kind="stable"), kind="stable") * bins // len(records)
    for record, rank in zip(records, ranks, strict=True):
        record["calibration"] = float(abs(np.mean(confidence[ranks == rank]) - np.mean(hits[ranks == rank])))


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.localiser_report", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="folder with events/ and hrtf/")
    p.add_argument("--hrtf", type=Path, help="HRTF file to render with (default: the first hrtf/*.sofa of the data)")
    p.add_argument("--localiser", type=Path, help="network file (default: that of the package)")
    p.add_argument("--limit", type=int, help="at most this many renderings per condition")
    p.add_argument("--seed", type=int, default=0, help="of directions and rooms (default 0)")
    p.add_argument("--out", type=Path, help="JSON file for the numbers")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    try:
        if args.limit is not None and args.limit < 1:
            raise ValueError(f"limit = {args.limit}: must be at least 1")
        path = args.hrtf or next(iter(sorted((args.data / "hrtf").glob("*.sofa"))), None)
        if path is None:
            raise ValueError(f"data = {str(args.data)!r}: no hrtf/*.sofa there, and no --hrtf FILE given")
        audio = default().audio
        hrtf = load_hrtf(path, audio.sample_rate)
        localiser = load_localiser(args.localiser)
        scenes = limit_evenly(load_scenes(args.data, LABELS, audio.n_samples, args.seed), args.limit)
        systems = {}
        for rooms in (False, True):
            found = measure(scenes, hrtf, localiser, audio, rooms=rooms, seed=args.seed)
            systems |= {f"{name}, {'rooms' if rooms else 'anechoic'}": rows for name, rows in found.items()}
        summaries = {name: report.summarise(rows, COLUMNS, args.seed) for name, rows in systems.items()}
        print(report.format_table(summaries, {name: len(rows) for name, rows in systems.items()}, COLUMNS))
        if args.out is not None:
            content = {"hrtf": hrtf.name, "localiser": str(args.localiser or "package"), "summary": summaries}
            text = report.to_json(content | {"clips": systems})
            write_atomically(args.out, lambda f: f.write(text.encode()))
    except ValueError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
