"""The fixed prompts of the evaluation: 10 sounds x 12 azimuths, with the azimuth as a number and in words.

A change of the wordings (`spatial/sounds.json`, `captions.py`, `direction.py`) changes the prompts: then
PROMPT_SET_VERSION must rise, and `tests/test_evaluate.py` says so.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.sounds import sample_event

PROMPT_SET_VERSION = 1
LABELS = (
    "dog barking", "rooster crowing", "rain", "sea waves", "baby crying", "clock ticking", "sneezing", "helicopter",
    "chainsaw", "fire crackling",
)  # fmt: skip
AZIMUTHS_DEG = tuple(float(a) for a in range(0, 360, 30))
ROWS = ("numeric", "words")


@dataclass(frozen=True)
class Prompt:
    """One clip to ask for.

    Attributes:
      index: place in its row; the clip's seed is the evaluation's seed plus this, so both rows share their noise.
      azimuth_deg: where the sound shall come from, degrees in [0, 360).
      style: 'numeric' (the words name the event only, the azimuth is given as a number), else the style of the words.
    """

    index: int
    label: str
    azimuth_deg: float
    style: str
    text: str


def make_prompts(row: str) -> tuple[Prompt, ...]:
    """Return the 120 prompts of a row, sound by sound; always the same.

    The styles of `words` take turns: doa and clock, and general too where one of its eight sectors is centred on the
    azimuth (the multiples of 90), so that every prompt asks for exactly its azimuth.

    Raises:
      ValueError: unknown row.
    """
    if row not in ROWS:
        raise ValueError(f"row = {row!r}: must be one of {', '.join(ROWS)}")
    prompts = []
    for i, label in enumerate(LABELS):
        for j, azimuth in enumerate(AZIMUTHS_DEG):
            index = i * len(AZIMUTHS_DEG) + j
            rng = np.random.default_rng([PROMPT_SET_VERSION, index])
            event = sample_event(label, rng)
            if row == "numeric":
                style, text = "numeric", make_caption(event, None, rng)
            else:
                styles = ("doa", "clock", "general") if azimuth % 90.0 == 0.0 else ("doa", "clock")
                style = styles[(i + j // (3 if len(styles) == 3 else 1)) % len(styles)]
                text = make_caption(event, azimuth, rng, style)
            prompts.append(Prompt(index, label, azimuth, style, text))
    return tuple(prompts)


def limit_evenly(items: Sequence, limit: int | None) -> list:
    """Return at most `limit` items, drawn by a fixed seed and in their order: a few of every sound and direction."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.sort(np.random.default_rng(0).permutation(len(items))[:limit])]


def to_json() -> dict:
    """Return the whole set for a report, with its SHA-256."""
    rows = {row: [asdict(prompt) for prompt in make_prompts(row)] for row in ROWS}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return {"version": PROMPT_SET_VERSION, "sha256": digest, "rows": rows}
