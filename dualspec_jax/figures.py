"""Draw the figures of an evaluation; matplotlib's Agg backend, no window."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def _subplots(rows: int, columns: int, size: tuple[float, float], polar: bool = False):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((columns * size[0], rows * size[1]), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "polar"} if polar else None)


def draw_azimuth(path: Path, systems: dict[str, Sequence[dict]], target_cues: Callable) -> None:
    """Draw, for each system, measured azimuth, ITD and ILD against the asked azimuth, over the HRTF's own.

    Args:
      systems: records of each system, from `clip_judge`.
      target_cues: azimuth -> (ITD us, ILD dB).
    """
    figure, axes = _subplots(3, len(systems), (3.6, 3.0))
    circle = np.arange(0.0, 361.0, 10.0)
    curves = np.array([target_cues(float(a) % 360.0) for a in circle])
    for column, (name, records) in enumerate(systems.items()):
        asked = np.array([r["asked_deg"] for r in records])
        measured = np.array([r["measured_deg"] for r in records], np.float64)
        top, middle, bottom = axes[:, column]
        top.plot([0, 360], [0, 360], color="0.7", lw=1)
        for start, end in ((0, 180), (180, 360)):  # where front and back change places
            top.plot([start, end], [180 - start if start == 0 else 360, 0 if start == 0 else 180], color="0.85", lw=1)
        top.scatter(asked, measured, s=8, alpha=0.6)
        top.set(title=f"{name} (n = {len(records)})", ylabel="measured azimuth, deg", ylim=(-5, 365))
        fields = (("itd_us", "ITD, us", middle, 0), ("ild_db", "ILD, dB", bottom, 1))
        for field, label, axis, k in fields:
            axis.plot(circle, curves[:, k], color="0.6", lw=1)
            axis.scatter(asked, [r[field] for r in records], s=8, alpha=0.6)
            axis.set(ylabel=label)
        bottom.set(xlabel="asked azimuth, deg")
        for axis in axes[:, column]:
            axis.set(xlim=(-5, 365), xticks=range(0, 361, 90))
    figure.savefig(path)


def draw_polar(path: Path, systems: dict[str, Sequence[dict]]) -> None:
    """Draw, for each system, measured azimuths around the listener, coloured by the asked ones, which the rim shows.

    0 degrees is up, 90 to the left, as seen from above. The distance from the centre has no meaning.
    """
    from matplotlib import colormaps

    figure, axes = _subplots(1, len(systems), (4.0, 4.2), polar=True)
    colour = lambda degrees: colormaps["hsv"](np.asarray(degrees) / 360.0)
    for axis, (name, records) in zip(axes[0], systems.items(), strict=True):
        asked = np.array([r["asked_deg"] for r in records])
        measured = np.array([r["measured_deg"] for r in records], np.float64)
        radius = 0.35 + 0.55 * np.random.default_rng(0).uniform(size=len(asked))
        axis.scatter(np.deg2rad(measured), radius, c=colour(asked), s=10, alpha=0.8)
        rim = np.unique(asked)
        axis.scatter(np.deg2rad(rim), np.full(len(rim), 1.05), c=colour(rim), marker="s", s=18)
        axis.set_theta_zero_location("N")
        axis.set(ylim=(0, 1.15), yticks=[], title=f"{name} (n = {len(records)})")
    figure.savefig(path)


def draw_events(path: Path, systems: dict[str, Sequence[dict]], labels: Sequence[str]) -> None:
    """Draw, for each system, what the classifier hears (of all its labels) for each sound asked for, per cent."""
    figure, axes = _subplots(1, len(systems), (4.6, 4.2))
    columns = [*labels, "another", "silent"]
    for axis, (name, records) in zip(axes[0], systems.items(), strict=True):
        table = np.zeros((len(labels), len(columns)))
        for record in records:
            heard = "silent" if record["silent"] else record["heard"] if record["heard"] in labels else "another"
            table[labels.index(record["label"]), columns.index(heard)] += 1
        table *= 100.0 / np.maximum(table.sum(axis=1, keepdims=True), 1)
        axis.imshow(table, vmin=0, vmax=100, cmap="Blues", aspect="auto")
        for i, j in np.argwhere(table >= 0.5):
            color = "white" if table[i, j] > 60 else "black"
            axis.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set(title=f"{name} (n = {len(records)})", xlabel="heard")
    figure.savefig(path)


def draw_spectrograms(path: Path, rows: dict[str, dict[str, np.ndarray]], titles: Sequence[str]) -> None:
    """Draw log-mels side by side: a row per sound, a column per system; low frequencies at the bottom.

    Each picture spans 8 nepers below its own 99.9 % quantile: loudness does not show.

    Args:
      rows: label -> {system: log-mel of the content [T, M]}; systems may be missing, sounds without any are left out.
      titles: the systems, in order.
    """
    rows = {label: pictures for label, pictures in rows.items() if pictures}
    figure, axes = _subplots(len(rows), len(titles), (3.2, 1.5))
    for i, (label, pictures) in enumerate(rows.items()):
        for j, title in enumerate(titles):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            if title in pictures:
                mel = pictures[title]
                top = np.percentile(mel, 99.9)
                axis.imshow(mel.T, origin="lower", aspect="auto", cmap="magma", vmin=top - 8.0, vmax=top)
            if j == 0:
                axis.set_ylabel(label, fontsize=7)
            if i == 0:
                axis.set_title(title, fontsize=9)
    figure.savefig(path)
