"""Sum up the records of an evaluation: means, medians, bootstrap intervals, the table."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dualspec_jax.metrics import circular_mean_std, lateral_deg, near_median_plane

RESAMPLES = 1000


class Column(NamedTuple):
    """A number of the table.

    Attributes:
      field: of a clip's record; NaN and missing values do not count.
      statistic: 'mean' or 'median'.
      scale: factor for the table and the report, 100 for percentages.
      format: of the table's cell.
    """

    name: str
    title: str
    field: str
    statistic: str = "mean"
    scale: float = 1.0
    format: str = ".1f"


COLUMNS = (
    Column("azimuth_median_deg", "az med", "azimuth_error_deg", "median"),
    Column("azimuth_mae_deg", "az MAE", "azimuth_error_deg"),
    Column("lateral_mae_deg", "lat MAE", "lateral_error_deg"),
    Column("within_15_percent", "<15deg %", "within_15", scale=100.0),
    Column("front_back_percent", "f/b %", "front_back", scale=100.0),
    Column("itd_error_us", "ITD us", "itd_error_us"),
    Column("itd_error_median_us", "ITD med", "itd_error_us", "median"),
    Column("ild_error_db", "ILD dB", "ild_error_db", format=".2f"),
    Column("event_set_percent", "event/set %", "event_set", scale=100.0),
    Column("event_all_percent", "event/all %", "event_all", scale=100.0),
    Column("silent_percent", "silent %", "silent", scale=100.0),
)
MORE_COLUMNS = (
    Column("within_5_percent", "<5deg %", "within_5", scale=100.0),
    Column("within_30_percent", "<30deg %", "within_30", scale=100.0),
    Column("side_percent", "side %", "same_side", scale=100.0),
    Column("resolved_mae_deg", "f/b resolved", "resolved_error_deg"),
    Column("coherence", "coherence", "coherence", format=".3f"),
    Column("network_median_deg", "net az med", "network_error_deg", "median"),
    Column("network_mae_deg", "net az MAE", "network_error_deg"),
    Column("network_front_back_percent", "net f/b %", "network_front_back", scale=100.0),
    Column("network_confidence_percent", "net conf %", "network_confidence", scale=100.0),
    Column("wording_spread_deg", "wording deg", "wording_spread_deg"),
    Column("clap", "CLAP", "clap", format=".3f"),
    Column("copy_similarity", "copying", "copy_similarity", format=".3f"),
    Column("event_kl", "event KL", "event_kl", format=".2f"),
)
STAGE_COLUMNS = (
    Column("log_mel_l1", "mel L1", "log_mel_l1", format=".3f"),
    Column("diff_l1", "mel L-R", "diff_l1", format=".3f"),
    Column("level_l1", "STFT level", "level_l1", format=".3f"),
    Column("ild_weighted", "STFT L-R", "ild_weighted", format=".3f"),
    Column("coherence_l1", "coh err", "coherence_l1", format=".3f"),
    Column("coherence_weighted", "coh err w", "coherence_weighted", format=".3f"),
    Column("ipd_rad", "IPD rad", "ipd_rad", format=".3f"),
    Column("resynthesis_l1", "audio mel L1", "resynthesis_l1", format=".3f"),
    Column("itd_shift_us", "dITD us", "itd_shift_us"),
    Column("ild_shift_db", "dILD dB", "ild_shift_db", format=".2f"),
)


def values_of(records: Sequence[dict], field: str) -> np.ndarray:
    """Return a field of all records, float64 [n]; NaN where it is missing."""
    return np.array([record.get(field, math.nan) for record in records], np.float64)


def _statistic(values: np.ndarray, column: Column) -> float:
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    return float((np.median if column.statistic == "median" else np.mean)(values) * column.scale)


def summarise(records: Sequence[dict], columns: Sequence[Column], seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """Return {name: {value, low, high}}, low and high being the 95 % bootstrap interval.

    Whole units (`record["unit"]`) are drawn: all clips of one recording together, so that three directions of one
    recording do not count as three independent sounds.
    """
    rng = np.random.default_rng(seed)
    units = {}
    for i, record in enumerate(records):
        units.setdefault(record["unit"], []).append(i)
    members = [np.array(indices) for indices in units.values()]
    draws = [
        np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))]) for _ in range(resamples)
    ]
    summary = {}
    for column in columns:
        values = values_of(records, column.field)
        if not np.any(np.isfinite(values)):
            continue
        spread = np.array([_statistic(values[draw], column) for draw in draws])
        spread = spread[np.isfinite(spread)]
        low, high = np.percentile(spread, (2.5, 97.5)) if len(spread) else (math.nan, math.nan)
        summary[column.name] = {"value": _statistic(values, column), "low": float(low), "high": float(high)}
    return summary


def wording_spreads(records: Sequence[dict]) -> list[dict]:
    """Return, for each sound and direction asked for in at least two styles, the circular deviation of the results.

    Silent clips do not count. Near the median plane it is that of the lateral angles, as for the azimuth error.
    """
    groups: dict[tuple, dict[str, float]] = {}
    for record in records:
        asked, measured = record["asked_deg"], record["measured_deg"]
        if np.isfinite(measured):
            angle = float(lateral_deg(measured)) if near_median_plane(asked) else measured
            groups.setdefault((record["label"], asked), {})[record["style"]] = angle
    spreads = [circular_mean_std(list(styles.values()))[1] for styles in groups.values() if len(styles) > 1]
    return [{"unit": i, "wording_spread_deg": spread} for i, spread in enumerate(spreads)]


def by_group(records: Sequence[dict], key: str) -> dict[str, dict[str, float]]:
    """Return the plain numbers of COLUMNS for each value of a field, such as each label."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(str(record[key]), []).append(record)
    return {
        name: {"n": len(group)} | {c.name: _statistic(values_of(group, c.field), c) for c in COLUMNS}
        for name, group in groups.items()
    }


def format_table(summaries: dict[str, dict], counts: dict[str, int], columns: Sequence[Column]) -> str:
    """Return a table of values, one row per system, and below it the same with 95 % intervals."""
    columns = [c for c in columns if any(c.name in s for s in summaries.values())]

    def lines(cell):
        header = ["system", "n", *(c.title for c in columns)]
        body = [
            [name, str(counts[name]), *(cell(c, summary[c.name]) if c.name in summary else "-" for c in columns)]
            for name, summary in summaries.items()
        ]
        widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
        text = []
        for name, *numbers in [header, *body]:
            text.append("  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]))
        return "\n".join(text)

    values = lines(lambda c, s: f"{s['value']:{c.format}}")
    intervals = lines(lambda c, s: f"{s['low']:{c.format}}..{s['high']:{c.format}}")
    return f"{values}\n\n95 % intervals (bootstrap)\n{intervals}"


def to_json(report: Any) -> str:
    """Return strict JSON: NaN and infinities become null."""
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(key): _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    if isinstance(x, float | np.floating):
        return float(x) if math.isfinite(x) else None
    return x.item() if isinstance(x, np.generic) else x
