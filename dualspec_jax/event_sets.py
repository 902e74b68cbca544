"""Compare the events of each system with those of real clips, as sets: Frechet distance, inception score, label KL."""

from collections.abc import Sequence

import numpy as np

from dualspec_jax import distribution_metrics as sets

REFERENCE = "real"


def compare(systems: dict[str, list[dict]]) -> dict[str, dict]:
    """Return {system: {n, n_real, frechet, frechet_extrapolated, kernel_distance, inception_score}}.

    Takes the arrays off the records, and adds `event_kl` to each whose label has real clips. Without a system `real`
    there is nothing to compare with: only inception scores are left. A number that needs more clips than there are is
    missing.

    Args:
      systems: records of `clip_judge.ClipJudge` with a classifier.
    """
    arrays = {
        name: {field: np.array([r.pop(field) for r in records]) for field in ("probabilities", "embedding")}
        for name, records in systems.items()
    }
    real = arrays.get(REFERENCE)
    real_labels = [r["label"] for r in systems.get(REFERENCE, ())]
    result: dict[str, dict] = {}
    for name, records in systems.items():
        mine, labels = arrays[name], [r["label"] for r in records]
        result[name] = {"n": len(records), "inception_score": sets.inception_score(mine["probabilities"])}
        if real is None:
            continue
        kl = sets.label_kl(real["probabilities"], real_labels, mine["probabilities"], labels)
        for record, value in zip(records, kl, strict=True):
            record["event_kl"] = float(value)
        if name == REFERENCE:
            continue
        result[name]["n_real"] = len(real_labels)
        smallest = min(len(records), len(real_labels))
        if smallest >= 2:
            result[name]["frechet"] = sets.frechet_distance(real["embedding"], mine["embedding"])
            result[name]["kernel_distance"] = sets.kernel_distance(real["embedding"], mine["embedding"])
        if smallest >= sets.least_to_extrapolate(real["embedding"].shape[1]):
            result[name]["frechet_extrapolated"] = sets.frechet_distance(
                real["embedding"], mine["embedding"], extrapolate=True
            )
    return result


def format_table(result: dict[str, dict]) -> str:
    """Return a table with a row per system; the number of clips stands beside every distance."""
    fields: Sequence[tuple[str, str]] = (
        ("n", "d"), ("n_real", "d"), ("frechet", ".3f"), ("frechet_extrapolated", ".3f"), ("kernel_distance", ".4f"),
        ("inception_score", ".2f"),
    )  # fmt: skip
    lines = ["  ".join([f"{'system':16s}", *(f"{name:>20s}" for name, _ in fields)])]
    for system, values in result.items():
        cells = (format(values[name], form) if name in values else "-" for name, form in fields)
        lines.append("  ".join([f"{system:16s}", *(f"{cell:>20s}" for cell in cells)]))
    return "\n".join(lines)
