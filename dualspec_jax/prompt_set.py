"""The fixed prompts of the evaluation, with the azimuth as a number and in words.

Five sets: `ten` (10 sounds x 12 azimuths), `full` (27 sounds x 24 azimuths x three wordings), `quick` (10 sounds x
3 azimuths x three wordings), `heldout` (10 sounds x 30 wordings that training never saw) and `heldout_full` (the same
of 27 sounds). Only `full` and `quick` word one direction in several ways for one sound.

A change of the wordings (`spatial/sounds.json`, `captions.py`, `direction.py`) changes the prompts: then
PROMPT_SET_VERSION must rise, and `tests/test_prompt_set.py` says so.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dualspec_jax.spatial.captions import make_caption
from dualspec_jax.spatial.sounds import heldout_wordings, sample_event

PROMPT_SET_VERSION = 1
LABELS = (
    "dog barking", "rooster crowing", "rain", "sea waves", "baby crying", "clock ticking", "sneezing", "helicopter",
    "chainsaw", "fire crackling",
)  # fmt: skip
AZIMUTHS_DEG = tuple(float(a) for a in range(0, 360, 30))
MORE_LABELS = (  # with at least 10 recordings in the project's collection, like LABELS
    "footsteps", "tabla", "playing cards", "poker chips", "gunshot", "hi-hat", "metal hit", "door", "glass breaking",
    "kick drum", "thunder", "whoosh", "car horn", "dice", "digging", "explosion", "snoring",
)  # fmt: skip
ROWS = ("numeric", "words")
SETS = ("ten", "full", "quick", "heldout", "heldout_full")  # a place here is a seed: append only
STYLES = ("doa", "clock", "general")
HELDOUT_WORDINGS = 30  # of each sound
GOLDEN = (5**0.5 - 1) / 2


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


def make_prompts(row: str, name: str = "ten") -> tuple[Prompt, ...]:
    """Return the prompts of a row, sound by sound; always the same.

    In `full` and `quick`, `words` asks for each direction in three styles and `numeric` once. The eight sectors of
    `general` are coarser than the 24 azimuths: there it asks for the nearest sector's middle.

    `heldout` and `heldout_full` have each wording once, all around the circle in a golden-ratio sequence of whole
    degrees.

    In `ten`, the 120 prompts of both rows pair up by index. The styles of `words` take turns there: doa and clock, and
    general too where one of its eight sectors is centred on the
    azimuth (the multiples of 90), so that every prompt asks for exactly its azimuth.

    Raises:
      ValueError: unknown row or set.
    """
    if row not in ROWS:
        raise ValueError(f"row = {row!r}: must be one of {', '.join(ROWS)}")
    if name not in SETS:
        raise ValueError(f"prompt set = {name!r}: must be one of {', '.join(SETS)}")
    if name.startswith("heldout"):
        return _heldout_prompts(row, name)
    return _ten_prompts(row) if name == "ten" else _worded_prompts(row, name)


def _heldout_prompts(row: str, name: str) -> tuple[Prompt, ...]:
    prompts = []
    for label in labels_of(name):
        for event in heldout_wordings(label)[:HELDOUT_WORDINGS]:
            index = len(prompts)
            azimuth, style = float(int(index * GOLDEN % 1.0 * 360.0)), "numeric" if row == "numeric" else "doa"
            rng = np.random.default_rng([PROMPT_SET_VERSION, SETS.index(name), ROWS.index(row), index])
            text = make_caption(event, *((None, rng) if row == "numeric" else (azimuth, rng, style)))
            prompts.append(Prompt(index, label, azimuth, style, text))
    return tuple(prompts)


def _ten_prompts(row: str) -> tuple[Prompt, ...]:
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


def _worded_prompts(row: str, name: str) -> tuple[Prompt, ...]:
    prompts = []
    for i, label in enumerate(labels_of(name)):
        if name == "full":
            azimuths = [15.0 * k for k in range(24)]
        else:  # three of the eight sectors, other ones for each sound
            azimuths = sorted(45.0 * ((3 * i + k) % 8) for k in (0, 2, 5))
        for azimuth in azimuths:
            for style in STYLES if row == "words" else ("numeric",):
                index = len(prompts)
                rng = np.random.default_rng([PROMPT_SET_VERSION, SETS.index(name), ROWS.index(row), index])
                event = sample_event(label, rng)
                asked = 45.0 * ((azimuth + 22.5) // 45.0) % 360.0 if style == "general" else azimuth
                text = make_caption(event, *((None, rng) if style == "numeric" else (asked, rng, style)))
                prompts.append(Prompt(index, label, asked, style, text))
    return tuple(prompts)


def labels_of(name: str) -> tuple[str, ...]:
    """Return the sounds of a prompt set."""
    return (*LABELS, *MORE_LABELS) if name in ("full", "heldout_full") else LABELS


def limit_evenly(items: Sequence, limit: int | None) -> list:
    """Return at most `limit` items, drawn by a fixed seed and in their order: a few of every sound and direction."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.sort(np.random.default_rng(0).permutation(len(items))[:limit])]


def to_json(name: str = "ten") -> dict:
    """Return a whole set for a report, with its SHA-256."""
    rows = {row: [asdict(prompt) for prompt in make_prompts(row, name)] for row in ROWS}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return {"name": name, "version": PROMPT_SET_VERSION, "sha256": digest, "rows": rows}
