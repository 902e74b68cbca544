"""Turn words into azimuths and azimuths into words; no other file does (`vocabulary.py` holds the patterns).

Azimuth: degrees, 0 = front, counter-clockwise: 90 = left, 180 = behind, 270 = right, in [0, 360). Clock hour h is
(360 - 30 h) mod 360. Three styles, as in the paper: DOA ("at 60 degrees"), clock ("at 10 o'clock") and general ("to the
front left"). An angle with a side or a turn is relative: "60 degrees to the right" = "60 degrees clockwise" = 300.

How parsing works: find angles, then clock hours, then mentions of front, back, left and right in what is left of the
text; join neighbouring mentions ("behind me" + "on the right"); check that all that was found agrees.

Paper: the three styles are named in the abstract; the wordings are ours.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from dualspec_jax.spatial import vocabulary

STYLES = ("doa", "clock", "general")
TOLERANCE_DEG = {"doa": 0.0, "clock": 15.0, "general": 22.5}
_RULE = "azimuth is in degrees, 0 = front, counter-clockwise, 90 = left, 180 = behind, 270 = right"


class DirectionError(ValueError):
    """A direction in words that is invalid, unsupported or contradicts another one in the same text."""

    def __init__(self, words: str, problem: str, rule: str = _RULE):
        super().__init__(f"direction {words!r}: {problem}; {rule}")


@dataclass(frozen=True)
class Direction:
    """A direction found in a text.

    Attributes:
      azimuth_deg: in [0, 360).
      style: 'doa', 'clock' or 'general'.
      tolerance_deg: how far the meant azimuth may lie from `azimuth_deg`: 0 (doa), 15 (clock), 22.5 (general).
      text, span: the matched words, and their place in the text.
    """

    azimuth_deg: float
    style: str
    tolerance_deg: float
    text: str
    span: tuple[int, int]


# --- degrees -------------------------------------------------------------------------------------------------------


def wrap_azimuth(deg):
    """Wrap degrees, a number or an array, into [0, 360)."""
    wrapped = np.mod(deg, 360.0)
    wrapped = np.where(wrapped >= 360.0, 0.0, wrapped) + 0.0  # mod(-1e-20, 360) is 360; + 0.0 turns -0.0 into 0.0
    return wrapped if np.ndim(deg) else float(wrapped)


def circular_difference(a, b):
    """Return the signed angle a - b in (-180, 180] degrees, of numbers or arrays; positive is counter-clockwise."""
    difference = 180.0 - np.mod(180.0 - np.subtract(a, b), 360.0)
    difference = np.where(difference <= -180.0, 180.0, difference)
    return difference if np.ndim(difference) else float(difference)


def validate_azimuth(value) -> float:
    """Return an azimuth from (-360, 360] as a float in [0, 360).

    Raises:
      ValueError: not a number, not finite, or out of range.
    """
    try:
        azimuth_deg = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"azimuth_deg: {value!r} is not a number of degrees") from error
    if not (math.isfinite(azimuth_deg) and -360.0 < azimuth_deg <= 360.0):
        raise ValueError(f"azimuth_deg: {value!r} must be finite and in (-360, 360] degrees")
    return wrap_azimuth(azimuth_deg)


STRAIGHT = str.maketrans("’‘ʼ´−–—º", "''''--,°")  # one to one, so that places in the text hold
_SECTORS = {"F": 0.0, "FL": 45.0, "L": 90.0, "BL": 135.0, "B": 180.0, "BR": 225.0, "R": 270.0, "FR": 315.0}


# --- words -> degrees ----------------------------------------------------------------------------------------------


def parse_direction(text: str) -> Direction | None:
    """Return the direction a text names, or None when it names none (the direction is free).

    Of several directions that agree, the most precise is kept: doa before clock before general. A side or an end named
    beside an angle or an hour means that half of the circle, so "on my left at 11 o'clock" agrees.

    Raises:
      DirectionError: two directions contradict, an angle or an hour is invalid, or the direction is a compass point
        or above or below the listener, which azimuth cannot express.
    """
    directions = _find_directions(text)
    for other in directions[1:]:
        if not _agree(directions[0], other):
            words = f"{directions[0].text} / {other.text}"
            problem = f"{directions[0].azimuth_deg:g} and {other.azimuth_deg:g} degrees contradict"
            raise DirectionError(words, problem, f"a text names one direction; {_RULE}")
    return directions[0] if directions else None


def parse_directions(text: str) -> list[Direction]:
    """Return every direction that a text names, in its order; they may differ, as those of several sources do.

    Raises:
      DirectionError: one of them is invalid; see `parse_direction`.
    """
    return sorted(_find_directions(text), key=lambda direction: direction.span)


def _find_directions(text: str) -> list[Direction]:
    """Return all directions of a text: angles, then clock hours, then mentions of sides and ends."""
    # Long runs of spaces would make the patterns slow; `keep` maps places in the squeezed text to the given one.
    keep = [i for i, c in enumerate(text) if not (c.isspace() and i and text[i - 1].isspace())]
    squeezed = "".join(text[i] for i in keep)
    low = "".join(c.lower() if len(c.lower()) == 1 else c for c in squeezed)  # same length, so places hold
    low = low.translate(STRAIGHT)
    for pattern, problem in (
        (vocabulary.ELEVATION, "elevation is not supported"),
        (vocabulary.COMPASS, "compass points are not supported"),
    ):
        if match := pattern.search(low):
            raise DirectionError(match.group().strip(), f"{problem}, as the listener's heading and height are unknown")
    found: list[tuple[float, str, int, int]] = []
    for find in (_find_angles, _find_hours, _find_mentions):
        new, used = find(low, squeezed)
        found += new
        for start, end in used:
            low = low[:start] + "\0" * (end - start) + low[end:]
    directions = []
    for azimuth_deg, style, start, end in found:
        span = keep[start], keep[end - 1] + 1
        words = text[slice(*span)]
        directions.append(Direction(wrap_azimuth(azimuth_deg), style, TOLERANCE_DEG[style], words, span))
    return directions


def _agree(best: Direction, other: Direction) -> bool:
    """Tell whether two directions can mean the same place; `best` is at least as precise as `other`."""
    apart = abs(circular_difference(best.azimuth_deg, other.azimuth_deg))
    if other.style != "general":
        return apart <= (other.tolerance_deg if best.style != other.style else 0.0)
    if best.style == "general" or other.azimuth_deg % 90.0:
        return apart <= 45.0
    return apart < 90.0


def _find_angles(low: str, text: str):
    """Return the angles in degrees, and the spans they use (temperatures, spins and zero elevations too)."""
    found, used, position = [], [], 0
    while match := vocabulary.ANGLE.search(low, position):
        start, end = match.span()
        position = end
        tail = vocabulary.TAIL.match(low, end)
        before = re.search(r"\b(left|right)\s+by\s+$", low[:start])
        bearing = match["az"] or before or (tail and (tail["side"] or tail["turn"] or tail["then"]))
        if not bearing and (vocabulary.HEAT.match(low, end) or vocabulary.HEATING.search(low, 0, start)):
            used.append((start, end))
            continue
        words = text[start:end].strip()
        if match["low"]:
            raise DirectionError(words, "a range or a moving source is not supported", f"give one angle; {_RULE}")
        value = vocabulary.read_number(match["az"] or match["num"])
        raised = re.search(r"\b(?:elevation|altitude)(?:\s+angle)?(?:\s+of|\s+is)?\s*[=:]?\s*$", low[:start])
        if raised or vocabulary.RAISED.match(low, end):
            if value != 0.0:
                raise DirectionError(words, "elevation is not supported")
            used.append((start, end))
            continue
        try:
            validate_azimuth(value)
        except ValueError as error:
            raise DirectionError(words, str(error)) from None
        azimuth_deg, kept = _apply_tail(value, tail, before, words)
        end = tail.end() if tail and kept else end
        start = before.start() if before else start
        found.append((azimuth_deg, "doa", start, end))
        used.append((start, end))
        position = end
    return found, used


def _apply_tail(value: float, tail, before, words: str) -> tuple[float, bool]:
    """Return the azimuth of an angle with its side, turn and reference, and whether the tail was part of it."""
    if before:
        side, turn, ref = before[1], None, None
    elif tail:
        side, turn, ref = tail["side"] or tail["then"], tail["turn"], tail["ref1"] or tail["ref2"] or tail["ref3"]
    else:
        return value, False
    rear = ref in ("behind", "back", "rear")
    if turn:
        base = 180.0 if rear else 0.0
        return (base - value if turn in ("clockwise", "cw") else base + value), True
    if not side:  # "60 degrees from the front" is the azimuth itself
        if rear and not 90.0 < value < 270.0:
            raise DirectionError(f"{words} from {ref}", "to the left or to the right is missing")
        return value, True
    if value > 180.0:  # an absolute azimuth: the side is one more mention that must agree
        return value, False
    if value < 0.0:
        raise DirectionError(f"{words} {side}", "an angle has a sign or a side, not both", "use 0 to 180 with a side")
    left = "left" in side
    if rear:
        return (180.0 - value if left else 180.0 + value), True
    return (value if left else -value), True


def _find_hours(low: str, text: str):
    """Return the clock hours as azimuths, and the spans they use (times of day too)."""
    found, used = [], []
    for match in vocabulary.CLOCK.finditer(low):
        start, end = match.span()
        used.append((start, end))
        if vocabulary.TIME.match(low, end) or vocabulary.STRIKING.search(low, 0, start):
            continue
        words, rule = text[start:end].strip(), "hours are 1 to 12, half hours allowed; 12 = front, 9 = left, 3 = right"
        if match["low"] or match["quarter"]:
            raise DirectionError(words, "a range or a quarter of an hour is not supported", rule)
        hour = read_hour(match)
        if not (1.0 <= hour < 13.0 and (2.0 * hour) % 1.0 == 0.0):
            raise DirectionError(words, "there is no such hour", rule)
        found.append(((360.0 - 30.0 * hour) % 360.0, "clock", start, end))
    return found, used


def read_hour(match: re.Match) -> float:
    """Return the hour of a match of `vocabulary.CLOCK`; NaN for half past a half."""
    hour_words = match["hour"] or match["bare"]
    if ":" in hour_words:
        hour, minutes = (float(part) for part in hour_words.split(":"))
        hour += minutes / 60.0
    elif thirty := re.fullmatch(r"(.+?)[\s-]+thirty", hour_words):
        hour = vocabulary.read_number(thirty[1]) + 0.5
    else:
        hour = vocabulary.read_number(hour_words)
    if match["past"] or match["bare"]:
        hour += 0.5 if hour % 1.0 == 0.0 else math.nan
    return hour


def _find_mentions(low: str, text: str):
    """Return the sectors named by front, back, left and right, neighbours joined, and no spans."""
    runs: list[list] = []  # [letters, start, end]
    for match in vocabulary.MENTION.finditer(low):
        words, start, end = match.group(), match.start() + len(match.group()) - len(match.group().lstrip()), match.end()
        near = bool(runs) and vocabulary.GAP.fullmatch(low, runs[-1][2], start) is not None
        verb = words == "behind" and not near and vocabulary.LEFT_BEHIND.search(low, 0, start)
        if verb and not vocabulary.AND_SIDE.match(low, end):
            continue
        letters = {
            letter
            for letter, pattern in zip(
                "FBLR", (r"front|ahead|forward|cent", r"behind|back|rear|shoulder", "left", "right"), strict=True
            )
            if re.search(pattern, words)
        }
        if near:
            runs[-1][0] |= letters
            runs[-1][2] = end
        else:
            runs.append([letters, start, end])
    found = []
    for letters, start, end in runs:
        words = text[start:end]
        name = "".join(letter for letter in "FBLR" if letter in letters)
        if name in ("L", "R") and (vocabulary.SLIGHTLY.search(low, 0, start) or "slight" in low[start:end]):
            name = "F" + name
        if name not in _SECTORS:
            raise DirectionError(words, "opposite directions contradict", f"a text names one direction; {_RULE}")
        found.append((_SECTORS[name], "general", start, end))
    return found, []


# --- degrees -> words ----------------------------------------------------------------------------------------------

# {n} azimuth 0-359, {w} in words; {s} signed azimuth, {sw} in words; {m} angle from the front, {mw} in words;
# {side} left or right; {c} azimuth counted clockwise; {h} hour, {hw} in words.
_DOA_WORDINGS = (
    "at {n} degrees", "from {n} degrees", "at {n}°", "at {n} deg", "at azimuth {n}", "at an azimuth of {n} degrees",
    "from an azimuth of {n}°", "at an angle of {n} degrees", "from the direction of {n} degrees", "at {w} degrees",
    "from {w} degrees", "at an angle of {w} degrees", "at {s} degrees", "from {s}°", "at {sw} degrees",
    "{m} degrees to the {side}", "{m} degrees to my {side}", "{m} degrees to your {side}", "{mw} degrees to the {side}",
    "from {m} degrees to the {side}", "at {m} degrees to the {side}", "{m}° {side} of center",
    "{m} degrees {side} of front", "turned {m} degrees to the {side}", "{mw} degrees off to the {side}",
    "{n} degrees counter-clockwise", "{n} degrees anticlockwise from the front", "{c} degrees clockwise",
    "{c}° clockwise from straight ahead",
)  # fmt: skip
_CLOCK_WORDINGS = (
    "at {h} o'clock", "at {hw} o'clock", "from {h} o'clock", "from {hw} o'clock", "in the {h} o'clock direction",
    "in the {hw} o'clock direction", "from the {h} o'clock direction", "at the {h} o'clock position",
    "from the {hw} o'clock position", "at my {h} o'clock", "at my {hw} o'clock", "at your {h} o'clock",
    "from my {hw} o'clock", "from your {h} o'clock", "toward {h} o'clock", "off at {hw} o'clock", "around {h} o'clock",
)  # fmt: skip
# front or back | left or right | the diagonals
_GENERAL_WORDINGS = (
    "{where} me|on my {side}|{where} me on the {side}",
    "{where} you|on your {side}|{where} you to the {side}",
    "{where} me|to my {side}|{where} me and to my {side}",
    "to the {end}|to the {side}|to the {end} {side}",
    "to the {rear}|off to the {side}|off to the {rear} {side}",
    "at the {end}|on the {side}|on the {end} {side}",
    "at the {rear}|at my {side}|at the {rear} {side}",
    "from the {end}|from the {side}|from the {end} {side}",
    "from the {end}|from my {side}|from the {end}-{side}",
    "from the {rear}|from your {side}|from the {side} {rear}",
    "from {where} me|from my {side} side|from {where} me on the {side}",
    "directly {ahead}|directly to my {side}|{ahead} and to the {side}",
    "straight {ahead}|on the {side}-hand side|{ahead} on the {side}",
    "right {where} me|beside me on the {side}|diagonally {ahead}, to the {side}",
    "directly {where} you|to the {side} of me|on my {side}, {where} me",
    "on the {end} side|on the {side} side|on the {end} {side} side",
    "toward the {rear}|toward the {side}|toward the {rear} {side}",
    "just {where} me|in my {side} ear|on the {side} and {where} me",
)
_WORDINGS = {"doa": _DOA_WORDINGS, "clock": _CLOCK_WORDINGS, "general": _GENERAL_WORDINGS}
_ENDS = {  # letter of the sector -> the words of `_GENERAL_WORDINGS`
    "F": {"where": "in front of", "end": "front", "rear": "front", "ahead": "ahead"},
    "B": {"where": "behind", "end": "back", "rear": "rear", "ahead": "behind"},
}


def wordings(style: str) -> tuple[str, ...]:
    """Return the templates of a style; `describe_direction(..., wording=i)` fills the i-th.

    Raises:
      ValueError: unknown style.
    """
    if style not in _WORDINGS:
        raise ValueError(f"style: {style!r} must be one of {STYLES}")
    return _WORDINGS[style]


def describe_direction(azimuth_deg: float, style: str, rng: np.random.Generator, wording: int | None = None) -> str:
    """Return words for an azimuth, such as "at 10 o'clock"; they bring their own preposition.

    Args:
      azimuth_deg: in (-360, 360].
      style: 'doa' (exact to 0.1 degrees), 'clock' (nearest hour; half hours only for an azimuth exactly between two)
        or 'general' (nearest of 8 sectors).
      rng: draws the wording when `wording` is None.
      wording: index into `wordings(style)`.

    Raises:
      ValueError: unknown style, invalid azimuth, or no such wording.
    """
    templates, azimuth_deg = wordings(style), validate_azimuth(azimuth_deg)
    if wording is None:
        wording = int(rng.integers(len(templates)))
    if not 0 <= wording < len(templates):
        raise ValueError(f"wording: {wording!r} must be in [0, {len(templates)}) for style {style!r}")
    fill = {"doa": _doa_words, "clock": _clock_words, "general": _general_words}[style]
    return fill(templates[wording], azimuth_deg)


def _doa_words(template: str, azimuth_deg: float) -> str:
    n = round(azimuth_deg, 1) % 360.0
    s = n if n <= 180.0 else round(n - 360.0, 1)
    c = round(360.0 - n, 1) % 360.0
    numbers = {"n": f"{n:g}", "s": f"{s:g}", "m": f"{abs(s):g}", "c": f"{c:g}"}
    words = {"w": vocabulary.spell_number(n), "sw": vocabulary.spell_number(s), "mw": vocabulary.spell_number(abs(s))}
    return template.format(**numbers, **words, side="left" if s >= 0 else "right")


def _clock_words(template: str, azimuth_deg: float) -> str:
    hours = (360.0 - azimuth_deg) / 30.0  # in (0, 12]
    half = hours % 1.0 == 0.5
    hour = (math.floor(hours) if half else round(hours)) or 12
    h, hw = (f"{hour}:30", f"half past {vocabulary.UNITS[hour]}") if half else (str(hour), vocabulary.UNITS[hour])
    return template.format(h=h, hw=hw)


def _general_words(template: str, azimuth_deg: float) -> str:
    letters = tuple(_SECTORS)[int((azimuth_deg + 22.5) // 45.0) % 8]
    median, lateral, diagonal = template.split("|")
    end = _ENDS["F" if "F" in letters else "B"]
    form = diagonal if len(letters) == 2 else median if letters in _ENDS else lateral
    return form.format(**end, side="left" if "L" in letters else "right")
